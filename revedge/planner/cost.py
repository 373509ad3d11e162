"""The prediction: base + supervisor + what the trace says + slack, in bytes of resident memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from revedge.planner.base import Base
from revedge.planner.setting import Setting

# One-sided, see README.md: measured resident peaks lie above base + trace for reasons that no trace sees. The shares
# are a least-squares fit over 120 trainings, the constant covers the worst of them with 1.5 MiB to spare.
SLACK_LEAST_BYTES = 7 << 19
SLACK_SHARE = 0.01  # of the traced bytes: pages that the kernel counts late, fragments
# Code that oneDNN generates for each shape, forward and backward.
SLACK_PER_CONVOLUTION_BYTES = 104 << 10
SLACK_PER_LOW_CONVOLUTION_BYTES = 168 << 10  # where some are in bfloat16: over 60 trainings
# Each tensor of weights: modules, nodes of autograd, states on Python's heap.
SLACK_PER_PARAMETER_BYTES = 10 << 10
# Beyond as many tensors as the members of the registry have, where gradients wait for the optimizer: what the graph
# leaves in the heap is not given back before they are there. Six trainings of 66 to 512 blocks, the worst with 1 MiB
# to spare.
MANY_PARAMETERS, SLACK_PER_WAITING_GRADIENT_BYTES = 330, 14 << 10
# Beside what the caching allocator reserves (cuda_pool.py): workspaces of cuDNN, measured on no GPU yet.
CUDA_SLACK_BYTES, CUDA_SLACK_SHARE = 64 << 20, 0.05
PARTS = (
    "base_bytes",
    "supervisor_bytes",
    "weights_bytes",
    "gradients_bytes",
    "optimizer_bytes",
    "activations_bytes",
    "workspace_bytes",
    "data_bytes",
    "pool_bytes",  # CUDA only: what its allocator reserves beyond the live bytes
    "slack_bytes",
    "spread_bytes",  # in its place where the rest was measured (rehearsed.py)
)


class Tracer(Protocol):
    """Whatever answers for the live bytes of a setting; `TraceClient` does."""

    def trace(self, setting: Setting) -> Mapping[str, int]:
        """Return the bytes by kind at the peak, and counts."""
        ...


@dataclass(frozen=True, slots=True)
class ByRun:
    """Live bytes before the first run; (kept, top) of each, see `revedge.planner.form.step.RunBytes`; and its work."""

    start_bytes: int
    runs: Sequence[tuple[int, int]]
    multiplications: Sequence[int]


@runtime_checkable
class TellsByRun(Protocol):
    """A tracer that can tell the runs of a network apart; `Formulas` does."""

    def by_run(self, setting: Setting) -> ByRun | None:
        """Return what each run takes; None where it is not known."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The predicted peak of supervisor and trainer together, and its parts, which sum to it."""

    parts: Mapping[str, int]
    runs: int = 1  # of the network: so many strategies a plan can have
    live_bytes: int = 0  # at the peak, beside base and slack
    by_run: "ByRun | None" = None  # where formulas told it

    @property
    def predicted_peak_bytes(self) -> int:
        """Never below the measured peak; that is what the slack is for."""
        return sum(self.parts.values())


def predict(setting: Setting, base: Base, tracer: Tracer) -> Prediction:
    """Return the peak memory of a training at ``setting``.

    Costs one trace (0.1 s on a small machine) if the tracer does not remember it.

    Raises:
        UsageError: the model does not exist in this form.
    """
    traced = tracer.trace(setting)
    dynamic = traced["peak_bytes"]
    slack = SLACK_LEAST_BYTES + math.ceil(dynamic * SLACK_SHARE)
    if setting.device == "cuda":
        slack += CUDA_SLACK_BYTES + math.ceil(dynamic * CUDA_SLACK_SHARE)
    full = setting.precision == "float32"
    per_convolution = SLACK_PER_CONVOLUTION_BYTES if full else SLACK_PER_LOW_CONVOLUTION_BYTES
    slack += traced["convolutions"] * per_convolution
    slack += traced["parameter_tensors"] * SLACK_PER_PARAMETER_BYTES
    if not setting.update_in_backward:
        waiting = max(0, traced["parameter_tensors"] - MANY_PARAMETERS)
        slack += waiting * SLACK_PER_WAITING_GRADIENT_BYTES
    parts = {name: traced[name] for name in PARTS if name in traced}
    if "reserved_bytes" in traced:
        parts["pool_bytes"] = max(0, traced["reserved_bytes"] - dynamic)
    return Prediction(
        parts={
            "base_bytes": base.trainer_bytes(
                setting.model, form_of(traced), setting.precision, setting.model_sha256
            ),
            "supervisor_bytes": base.supervisor_bytes,
            **parts,
            "slack_bytes": slack,
        },
        runs=traced["runs"],
        live_bytes=dynamic,
        by_run=tracer.by_run(setting) if isinstance(tracer, TellsByRun) else None,
    )


def form_of(traced: Mapping[str, int]) -> str:
    """Return the form of the base of a traced network."""
    if traced["convolutions"] == 0:
        return "none"
    return "narrow" if traced["narrow"] else "blocked"
