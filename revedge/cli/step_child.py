"""One net under one strategy, a few training steps, in a process of its own: what `verify` and `bench` measure.

Reads one JSON object from its first argument, prints one JSON line. The process follows the allocator policy of a
training, so that its memory is what a training has.
"""

import functools
import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from revedge import child
from revedge.allocator import preload, return_freed_memory, trim
from revedge.cli.step_meter import anonymous_peak, cpu_seconds, tracked_peaks
from revedge.devices.meter import status_bytes
from revedge.errors import UsageError
from revedge.units import format_bytes
from revedge.user_code import ForeignError, traceback_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from revedge.engine import Run

PLAIN = "plain"  # autograd over the reference operators, no engine
_RATE = 1e-3  # of the gradient descent that stands for an update in the backward pass


def run_step(job: dict[str, Any]) -> dict[str, Any]:
    """Build, warm up, measure; returns the row.

    Args:
        job: model (arguments of `revedge.models.create`), strategy, batch, threads, repeats (timed steps; 1 also means
            one step in place of two before them). Or null: track (also count storages), update_in_backward, slab_bytes,
            span_count, membrane_count, chunk_bytes, check, gradients (path to write to), reference (path to compare
            with).
    """
    return_freed_memory()
    import torch

    from revedge import engine, models
    from revedge.models.user_net import UserNet

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    config = dict(job["model"])
    plain = job["strategy"] == PLAIN
    net = models.create(**config, strategy="store" if plain else job["strategy"])
    net.set_strategy("store" if plain else job["strategy"], check=job.get("check", "none"))
    net.train()
    _refuse_in_vain(net.runs(), job)
    net.take_sizes(SimpleNamespace(**job))
    start: dict[str, Tensor] = {}
    if job.get("update_in_backward"):
        engine.update_in_backward(net, _descend)
        start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, label = _batch(net.in_shape, config, job["batch"])

    forward: Callable[[Tensor], Tensor] = net
    if plain and isinstance(net, UserNet):
        net.plain()
    elif plain:
        from revedge.models.plain import plain_forward

        forward = functools.partial(plain_forward, net)

    def step() -> float:
        net.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(forward(x), label)
        loss.backward()
        return float(loss)

    row: dict[str, Any] = {"strategy": job["strategy"]}
    trim()
    with anonymous_peak(row):
        row["loss"] = step()
        _refuse_uncut(net.runs(), job)
        if job["repeats"] > 1:
            step()
    if not start:
        row |= _digests(net, job)
    row["cpu_s"] = round(cpu_seconds(step, job["repeats"]), 4)
    row["peak_bytes"] = status_bytes()["VmHWM"]
    if job.get("track"):
        row |= tracked_peaks(step, net)
    if start:
        _captured(net, start, step)
        row |= _digests(net, job)
    return row


def _refuse_in_vain(runs: "list[Run]", job: dict[str, Any]) -> None:
    """Raise where something is asked for that would change nothing in this net."""
    from revedge.engine import in_vain

    if job["strategy"] == "invert" and (why := in_vain.why_not_inverted(runs)) is not None:
        raise UsageError(f"strategy {why}; give --neuron reversible, or leave it out")
    count = job.get("span_count") or 1
    if count > 1 and (why := in_vain.why_nothing_to_cut(runs)) is not None:
        raise UsageError(f"spans={count}: {why}; leave spans out")


def _refuse_uncut(runs: "list[Run]", job: dict[str, Any]) -> None:
    """Raise where spans were asked for, and after a step nothing has gone backward in any."""
    from revedge.engine.in_vain import SPAN_STRATEGIES
    from revedge.engine.signal import CHUNK_BYTES

    count = job.get("span_count") or 1
    if (
        count > 1
        and job["strategy"] in SPAN_STRATEGIES
        and all(run.most_spans == 1 for run in runs)
    ):
        chunk = format_bytes(job.get("chunk_bytes") or CHUNK_BYTES)
        raise UsageError(
            f"spans={count}: one chunk of a convolution, {chunk} of spikes, holds all {job['model']['timesteps']} time "
            "steps, so nothing is cut; give smaller chunks, or leave spans out"
        )


def _descend(parameter: "nn.Parameter", gradient: "Tensor") -> None:
    parameter.data.sub_(gradient.mul_(_RATE))


def _captured(net: "nn.Module", start: "dict[str, Tensor]", step: Callable[[], float]) -> None:
    """Do one step from the weights ``start`` and leave the gradients in ``grad``, where updates took them away."""
    from revedge.engine import update_in_backward

    net.load_state_dict(start)
    found: dict[nn.Parameter, Tensor] = {}
    update_in_backward(net, lambda parameter, gradient: found.update({parameter: gradient.clone()}))
    step()
    for parameter, gradient in found.items():
        parameter.grad = gradient


def _batch(
    in_shape: tuple[int, ...], config: dict[str, Any], batch: int
) -> tuple["Tensor", "Tensor"]:
    import torch

    shape = (batch, *in_shape) if config.get("static") else (config["timesteps"], batch, *in_shape)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2
    label = torch.randint(
        config["num_classes"], (batch,), generator=torch.Generator().manual_seed(2)
    )
    return x, label


def _digests(net: "nn.Module", job: dict[str, Any]) -> dict[str, Any]:
    """SHA-256 of gradients and of running statistics, and the distance from the reference gradients."""
    import numpy as np

    gradients = {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}
    statistics = {name: b.numpy() for name, b in net.named_buffers()}
    found: dict[str, Any] = {
        "gradient_sha256": _digest("sha256", gradients),
        "gradient_sha1": _digest("sha1", gradients),
        "statistics_sha256": _digest("sha256", statistics),
    }
    if job.get("gradients"):
        with open(job["gradients"], "wb") as file:
            np.savez(file, allow_pickle=False, **gradients)
    if job.get("reference"):
        with np.load(job["reference"], allow_pickle=False) as reference:
            norms = {name: float(np.linalg.norm(reference[name])) for name in reference.files}
            # A gradient that is zero but for rounding, as that of a bias before batch norm, has no relative error.
            floor = max(1e-3 * max(norms.values()), 1e-12)
            found["max_relative_error"] = max(
                float(np.linalg.norm(gradients[name] - reference[name])) / max(norm, floor)
                for name, norm in norms.items()
            )
    return found


def _digest(kind: str, arrays: dict[str, Any]) -> str:
    import numpy as np

    sha = hashlib.new(kind)
    for name in sorted(arrays):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(arrays[name]).data.cast("B"))
    return sha.hexdigest()


def spawn(job: dict[str, Any]) -> dict[str, Any]:
    """Run ``job`` in a fresh process and return its row; an error in it comes back as the row's ``error``.

    Raises:
        UsageError: the child did.
    """
    import subprocess

    words = child.command("revedge.cli.step_child", json.dumps(job))
    env = child.environment(PYTHONWARNINGS="ignore", **preload())
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        row: dict[str, Any] = json.loads(lines[-1])
        if "usage_error" in row:
            raise UsageError(row["usage_error"]) from ForeignError(f"\n{row['traceback']}")
        return row
    reason = next(
        (line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message"
    )
    return {"strategy": job["strategy"], "error": f"exit code {done.returncode}: {reason}"}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    try:
        answer = run_step(json.loads(sys.argv[1]))
    except UsageError as error:
        answer = {"usage_error": str(error), "traceback": traceback_text(error)}
    print(json.dumps(answer))
