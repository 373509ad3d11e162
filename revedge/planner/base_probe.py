"""Measures what a process takes before the network it trains: run as a child, prints one JSON line.

``python -m revedge.planner.base_probe trainer THREADS DEVICE FAMILY FORM PRECISION``: imports what the trainer
imports, trains the smallest network of the family for two steps, so that its operators have loaded their code and made
their threads, and reports resident bytes. The form is how its convolutions are computed (base.py).
``python -m revedge.planner.base_probe supervisor``: the same for the supervisor, which has no torch.
"""

import contextlib
import gc
import importlib
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from revedge import allocator
from revedge.user_code import is_user_model

# What the trainer and the supervisor import; devices and cli are above the planner, so they are named, not imported.
TRAINER_MODULES = (
    "numpy",
    "torch",
    "revedge.devices.trainer",
    "revedge.devices.loop",
    "revedge.devices.build",
    "revedge.data",
    "revedge.models",
    "revedge.kernels",
)
SUPERVISOR_MODULES = (
    "revedge.cli.main",
    "revedge.cli.train",
    "revedge.devices.supervisor",
    "revedge.devices.preparation",
)
# Where the family is not known: networks whose operators differ.
_LOW_SHAPES = (  # samples, channels in and out, side, kernel, stride
    (8, 3, 16, 16, 3, 1),
    (8, 8, 8, 12, 3, 1),
    (8, 8, 16, 12, 3, 2),
    (8, 16, 32, 8, 1, 2),
    (16, 12, 12, 4, 3, 1),
    (1, 16, 16, 8, 1, 1),
    (8, 64, 64, 8, 3, 1),
)
_OTHERS = ("revsresnet11", "ms-resnet6", "vgg5")


def status_bytes() -> dict[str, int]:
    """Return VmRSS, VmHWM, RssAnon, RssFile and their kin of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        rows = [line.split() for line in file if line.startswith(("Vm", "Rss"))]
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows}


def load(modules: Sequence[str]) -> None:
    """Import ``modules``."""
    for name in modules:
        importlib.import_module(name)


def warm_up(threads: int, device: str, family: str, form: str, precision: str) -> int:
    """Train a tiny network of ``family`` for two steps and an evaluation.

    Returns:
        Bytes of code that was generated for shapes which are no training's; what was loaded for them belongs to it.
    """
    import torch

    from revedge import models
    from revedge.planner.setting import Setting
    from revedge.planner.step import Rehearsal

    torch.set_num_threads(threads)
    samples = 1 if form == "none" else 2  # torch keeps a single small frame from oneDNN
    members = models.families().get(family)
    for model in _OTHERS if members is None else [min(members, key=_layers)]:
        setting = Setting(
            model=model,
            model_options={"width": 16 if form == "none" else 32},
            in_shape=(2, 32, 32),
            num_classes=4,
            timesteps=samples,
            batch_size=samples,
            micro_batch_size=samples,
            strategy="keep-spikes",
            precision=precision,
            threads=threads,
        )
        rehearsal = Rehearsal(setting, device)
        rehearsal.train_step()
        rehearsal.train_step()
        rehearsal.evaluate()
        del rehearsal
    if is_user_model(family):
        _import_code(family)
    strange_bytes = 0
    if precision != "float32":
        before = _anonymous_bytes()
        _convolve(getattr(torch, precision))
        strange_bytes = max(0, _anonymous_bytes() - before)
    if form == "narrow":
        x, weight = torch.rand(16, 12, 2, 2), torch.rand(12, 12, 3, 3, requires_grad=True)
        torch.conv2d(x, weight, padding=1).sum().backward()
    gc.collect()
    return strange_bytes


def _import_code(name: str) -> None:
    """Import the user's code, let it make its network once, and train one under `apply`."""
    import torch
    from torch import nn

    from revedge import models, user_code
    from revedge.engine import apply
    from revedge.errors import RevedgeError
    from revedge.neurons import LIFNode, reset_net

    user_code.digest(name)  # as the trainer compares it
    # Whatever it imports late comes with it; other frames than its own it need not take.
    with contextlib.suppress(RevedgeError, RuntimeError), torch.device("meta"):
        models.create(name, in_shape=(2, 32, 32), num_classes=4, timesteps=2)
    net = nn.Sequential(nn.Flatten(2), nn.Linear(8, 4), LIFNode(), nn.Linear(4, 4))
    apply(net, "keep-spikes")
    for _ in range(2):
        net(torch.ones(2, 2, 8, 1)).sum().backward()
        reset_net(net)


def _anonymous_bytes() -> int:
    gc.collect()
    allocator.trim()
    return status_bytes().get("RssAnon", 0)


def _convolve(dtype: Any) -> None:
    """Have oneDNN load what it computes convolutions in ``dtype`` with: more kinds of code than in float32."""
    import torch

    for samples, c_in, c_out, side, kernel, stride in _LOW_SHAPES:
        x = torch.rand(samples, c_in, side, side).to(dtype).requires_grad_()
        weight = torch.rand(c_out, c_in, kernel, kernel).to(dtype).requires_grad_()
        torch.conv2d(x, weight, None, stride, kernel // 2).float().sum().backward()


def _layers(model: str) -> int:
    return sum(map(int, re.findall(r"\d+", model)))


def main(argv: Sequence[str]) -> int:
    """Measure and print."""
    tight, strange_bytes = allocator.return_freed_memory(), 0
    if argv[0] == "trainer":
        load(TRAINER_MODULES)
        strange_bytes = warm_up(int(argv[1]), *argv[2:6])
    else:
        load(SUPERVISOR_MODULES)
    allocator.trim()
    found = status_bytes()
    print(
        json.dumps(
            {
                "rss_bytes": found["VmRSS"] - strange_bytes,
                "anonymous_bytes": found.get("RssAnon", 0),
                "file_bytes": found.get("RssFile", 0),
                "tight": tight,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
