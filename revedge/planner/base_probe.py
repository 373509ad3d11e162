"""Measures what a process takes before the network it trains: run as a child, prints one JSON line.

``python -m revedge.planner.base_probe trainer THREADS DEVICE``: imports what the trainer imports,
trains three tiny networks for a step, so that every family of operators has loaded its code and
made its threads, and reports resident bytes. ``python -m revedge.planner.base_probe supervisor``:
the same for the supervisor, which has no torch.
"""

import gc
import importlib
import json
import sys
from collections.abc import Sequence

from revedge import allocator

# What the trainer and the supervisor import; `revedge.devices` is named, not imported, and may be missing.
TRAINER_MODULES = (
    "numpy",
    "torch",
    "revedge.kernels",
    "revedge.neurons",
    "revedge.engine",
    "revedge.models",
    "revedge.data",
    "revedge.planner.plan",
)
SUPERVISOR_MODULES = (
    "argparse",
    "dataclasses",
    "fcntl",
    "importlib.metadata",
    "json",
    "selectors",
    "signal",
    "subprocess",
    "tempfile",
    "threading",
    "revedge.cli.main",
    "revedge.planner.plan",
    "revedge.planner.trace_client",
)
_WARM_UP = (("revsresnet11", "reverse"), ("ms-resnet6", "keep-spikes"), ("vgg5", "store"))


def status_bytes() -> dict[str, int]:
    """Return VmRSS, VmHWM, RssAnon, RssFile and their kin of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        rows = [line.split() for line in file if line.startswith(("Vm", "Rss"))]
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows}


def load(modules: Sequence[str]) -> None:
    """Import ``modules``."""
    for name in modules:
        importlib.import_module(name)


def warm_up(threads: int, device: str) -> None:
    """Train tiny networks for two steps, with every memory strategy that the operators differ in."""
    import torch

    from revedge.planner.setting import Setting
    from revedge.planner.step import Rehearsal

    torch.set_num_threads(threads)
    for model, strategy in _WARM_UP:
        setting = Setting(
            model=model,
            in_shape=(2, 16, 16),
            num_classes=4,
            timesteps=2,
            batch_size=4,
            micro_batch_size=4,
            strategy=strategy,
            threads=threads,
        )
        rehearsal = Rehearsal(setting, device)
        rehearsal.train_step()
        rehearsal.train_step()
        rehearsal.evaluate()
        del rehearsal
    gc.collect()


def main(argv: Sequence[str]) -> int:
    """Measure and print."""
    tight = allocator.return_freed_memory()
    if argv[0] == "trainer":
        load(TRAINER_MODULES)
        warm_up(int(argv[1]), argv[2])
    else:
        load(SUPERVISOR_MODULES)
    allocator.trim()
    found = status_bytes()
    print(
        json.dumps(
            {
                "rss_bytes": found["VmRSS"],
                "anonymous_bytes": found.get("RssAnon", 0),
                "file_bytes": found.get("RssFile", 0),
                "tight": tight,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
