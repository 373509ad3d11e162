"""Close predictions of small trainings: what no tensor holds is measured by a rehearsal, not bounded. Free of torch.

What a process takes beside its tensors (code that oneDNN generates, Python's objects, library pages) is some MiB, which
`cost.predict` bounds by a fitted slack. Where the tensors themselves take no more than `MOST_LIVE_BYTES` that bound is
a large part of what the network takes, and a step is short: so the plan that was chosen is trained for some steps, by
the trainer itself (`rehearse_child.py`), once, and what it took is remembered. Anything larger stays computed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from revedge.planner.cost import Prediction
from revedge.planner.memory import Memory
from revedge.planner.plan import Plan
from revedge.planner.process import answers, fingerprint
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient

# From here on the slack, at most 15 MiB, is less than 8 % of what the network takes.
MOST_LIVE_BYTES = 192 << 20
# Of a step: two seconds on a core of a PC, many on one of a small board. Above the first only one step is made.
MANY_MULTIPLICATIONS, MOST_MULTIPLICATIONS = 2.4e10, 1.2e11
MOST_STEPS = 40  # in 2 s; the heap of a training grows for some 10, by 0.3 to 0.6 MiB
ENOUGH_STEPS, GROWTH_BYTES = 10, 5 << 17
# So much a training may lie above its rehearsal, see README.md: seen were 0.24 MiB; 0.52 where kernels count less
# exactly, because several threads run on several cores, and where addresses are drawn anew at each start.
SPREAD_BYTES, LOOSE_SPREAD_BYTES = 3 << 17, 3 << 18
_TENSORS = tuple(
    f"{kind}_bytes" for kind in ("weights", "gradients", "optimizer", "activations", "data")
)


def closely(plan: Plan, computed: Prediction, tracer: TraceClient) -> Prediction:
    """Return what a rehearsal of ``plan`` tells, or ``computed`` where it is not small or cannot be rehearsed here.

    The parts are measured then: ``base_bytes`` is the trainer with this network but without its tensors,
    ``workspace_bytes`` what the peak lies above both, and ``spread_bytes`` is in the place of the slack. Costs the
    start of torch and some seconds of training, once on a machine.

    Args:
        plan: the configuration; what it says of its prediction is not read.
        computed: its prediction; by traces, so that tensors are told by kind.
        tracer: tells how large it is.

    Raises:
        UsageError, TraceError: as `TraceClient.trace`.
    """
    steps = _steps(Setting.of(plan), tracer)
    found = _measured(plan, computed, steps) if steps else None
    if found is None:
        return computed
    tensors = {name: computed.parts[name] for name in _TENSORS if name in computed.parts}
    resting = sum(computed.parts[name] for name in ("weights_bytes", "optimizer_bytes"))
    beside = max(0, found["peak_bytes"] - sum(tensors.values()))
    base = min(beside, found["resting_bytes"] - resting)
    parts = {
        "base_bytes": base,
        "supervisor_bytes": computed.parts["supervisor_bytes"],
        **tensors,
        "workspace_bytes": beside - base,
        "spread_bytes": _spread_bytes(plan.threads, found),
    }
    return dataclasses.replace(computed, parts=parts)


def _spread_bytes(threads: int, found: Mapping[str, Any]) -> int:
    """Return what a training may take more than the rehearsal that told ``found``."""
    close = threads == 1 and found.get("same_addresses", False)
    spread_bytes = SPREAD_BYTES if close else LOOSE_SPREAD_BYTES
    return spread_bytes if found["steps"] >= ENOUGH_STEPS else spread_bytes + GROWTH_BYTES


def _steps(setting: Setting, tracer: TraceClient) -> int:
    """Return how many steps are made at most; 0 for what is not small."""
    if setting.device != "cpu":
        return 0
    traced = tracer.trace(setting)
    rounds = 1 if setting.micro_batch_size == setting.batch_size else 2  # as they are rehearsed
    work = traced["multiplications"] * rounds
    if traced["peak_bytes"] > MOST_LIVE_BYTES or work > MOST_MULTIPLICATIONS:
        return 0
    return MOST_STEPS if work <= MANY_MULTIPLICATIONS else 1


def _measured(plan: Plan, computed: Prediction, steps: int) -> Mapping[str, Any] | None:
    """Return what the child tells, now or remembered; None where it failed."""
    # Each runs other code, whatever its value.
    loss_and_data = [plan.label_smoothing > 0, plan.augment_shift > 0]
    key = fingerprint(rehearsed=[Setting.of(plan).key(), *loss_and_data])
    memory = Memory("rehearsals.json", limit=5_000)
    known: Mapping[str, Any] | None = memory.get(key)
    if known is not None:
        return known
    peak = computed.predicted_peak_bytes
    roomy = dataclasses.replace(  # no fence is to be met
        plan, budget_bytes=2 * peak, predicted_peak_bytes=peak, parts=computed.parts
    )
    told = answers("revedge.planner.rehearse_child", {"plan": roomy.to_toml(), "steps": steps})
    if not told or "error" in told[-1]:
        return None
    found: Mapping[str, Any] = told[-1]
    memory.set(key, found)
    memory.save()
    return found
