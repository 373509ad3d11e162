"""What a training can still do when its memory is not enough: the rungs below a plan, each with its own prediction.

What changes no number comes first: a stronger memory strategy, each weight updated as soon as its gradient is there.
Then slabs of channels, equal but for rounding, and spans of time, which cost the most time. Then half the micro-batch,
again and again: batch norm sees fewer samples at a time, so that is another training, and says so. Below the last rung
there is nothing but to stop. A rung that is not predicted to need less than the one above it is left out.
Free of torch.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from revedge.errors import DeviceError, PlanFormatError, UsageError
from revedge.planner.plan import Plan
from revedge.planner.precision import PRECISIONS
from revedge.planner.setting import Setting
from revedge.planner.way import SLAB_TIME_FACTORS, SPANS, TIME_FACTORS, Way
from revedge.units import format_bytes

if TYPE_CHECKING:
    from revedge.planner.cost import Prediction

VERSION = 1
EXACT = "the same gradients to the last bit"
TO_ROUNDING = "the same gradients but for rounding"
OTHER_BATCHES = (
    "batch statistics are of the micro-batch, so the result differs from the first plan's"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """A plan, and what it changes against the rung above it (the first: nothing)."""

    plan: Plan
    change: str = ""  # as "strategy store -> keep-conv"
    effect: str = EXACT

    def of(self, plan: Plan) -> "Rung":
        """Return this rung for another training of the same memory: only what the ladder changes is taken from it."""
        return replace(
            self, plan=replace(plan, **{name: getattr(self.plan, name) for name in _CHANGED})
        )


_CHANGED = (
    "strategy",
    "update_in_backward",
    "slab_bytes",
    "span_count",
    "micro_batch_size",
    "predicted_peak_bytes",
    "parts",
)


def descend(plan: Plan, predict: Callable[[Setting], "Prediction"]) -> list[Rung]:
    """Return ``plan`` with its present prediction, and the rungs below it, each predicted to need less.

    Costs one prediction for each rung, at most ten and one for each halving of the micro-batch.

    Raises:
        UsageError: the model of ``plan`` cannot exist.
    """
    rungs = [Rung(plan=_predicted(plan, predict))]
    for change in _changes(plan):
        above = rungs[-1].plan
        changed = change(above)
        if changed is None:
            continue
        below, what, effect = changed
        try:
            below = _predicted(below, predict)
        except (UsageError, DeviceError):  # it cannot exist, or cannot be traced
            continue
        if below.predicted_peak_bytes < above.predicted_peak_bytes:
            rungs.append(Rung(plan=below, change=what, effect=effect))
    return rungs


def smaller_micro_batch(batch_size: int, micro_batch_size: int) -> int | None:
    """Return the largest divisor of `batch_size` that is at most half of `micro_batch_size`; None at 1."""
    for size in range(micro_batch_size // 2, 0, -1):
        if batch_size % size == 0:
            return size
    return None


def rungs_below(plan: Plan, rungs: Sequence[Rung]) -> list[Rung] | None:
    """Return the rungs of a ladder that lie below ``plan``, made for it; None if it is not on that ladder."""
    here = Setting.of(plan)
    for place, rung in enumerate(rungs):
        if Setting.of(rung.plan) == here:
            return [each.of(plan) for each in rungs[place + 1 :]]
    return None


def describe(plan: Plan) -> str:
    """Return in a few words how a plan saves memory."""
    way = Way.of(Setting.of(plan)).text()
    if plan.micro_batch_size == plan.batch_size:
        return way
    return f"{way}, micro-batch {plan.micro_batch_size}"


def dump(rungs: Sequence[Rung]) -> str:
    """Return rungs as the text of a file; `load` gives them back."""
    rows = [
        {"change": rung.change, "effect": rung.effect, "plan": rung.plan.to_toml()}
        for rung in rungs
    ]
    return json.dumps({"version": VERSION, "rungs": rows}, indent=1) + "\n"


def load(text: str) -> list[Rung]:
    """Return the rungs that `dump` wrote.

    Raises:
        PlanFormatError: it did not write this.
    """
    try:
        values = json.loads(text)
        if values["version"] != VERSION:
            raise PlanFormatError(
                f"ladder: version = {values['version']!r}, this revedge reads {VERSION}"
            )
        return [
            Rung(plan=Plan.from_toml(row["plan"]), change=row["change"], effect=row["effect"])
            for row in values["rungs"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, PlanFormatError):
            raise
        raise PlanFormatError(f"ladder: the file is damaged ({error})") from None


Change = tuple[Plan, str, str]  # the changed plan, what was changed, what that means for the result


def _changes(plan: Plan) -> Iterator[Callable[[Plan], Change | None]]:
    """Yield what can be done, in order; each is told the plan as it is by then, None: nothing to do."""
    reversible = plan.model_options.get("neuron") == "reversible"
    for name in sorted(TIME_FACTORS, key=TIME_FACTORS.__getitem__):
        if name != "invert" or reversible:
            yield partial(_stronger, name)
    yield _updated_in_backward
    for size_bytes in SLAB_TIME_FACTORS:
        if size_bytes is not None:
            yield partial(_in_slabs, size_bytes)
    if plan.device == "cpu" and plan.precision == PRECISIONS[0]:  # as they are searched
        for count in SPANS:
            if count is not None:
                yield partial(_in_spans, count)
    size = plan.micro_batch_size
    while (half := smaller_micro_batch(plan.batch_size, size)) is not None:
        size = half
        yield partial(_in_pieces, size)


def _stronger(name: str, above: Plan) -> Change | None:
    """Every run that has a weaker strategy than ``name`` gets it."""
    runs = (above.strategy,) if isinstance(above.strategy, str) else tuple(above.strategy)
    raised = tuple(max(run, name, key=TIME_FACTORS.__getitem__) for run in runs)
    if raised == runs:
        return None
    below = raised[0] if len(set(raised)) == 1 else raised
    what = f"strategy {'+'.join(runs)} -> {below if isinstance(below, str) else '+'.join(below)}"
    return replace(above, strategy=below), what, EXACT


def _updated_in_backward(above: Plan) -> Change | None:
    if above.update_in_backward or above.micro_batch_size != above.batch_size:
        return None
    return replace(above, update_in_backward=True), "update in backward", EXACT


def _in_slabs(size_bytes: int, above: Plan) -> Change | None:
    if above.slab_bytes is not None and above.slab_bytes <= size_bytes:
        return None
    old = "whole tensors" if above.slab_bytes is None else f"slabs {format_bytes(above.slab_bytes)}"
    what = f"{old} -> slabs {format_bytes(size_bytes)}"
    return replace(above, slab_bytes=size_bytes), what, TO_ROUNDING


def _in_spans(count: int, above: Plan) -> Change | None:
    if above.span_count is not None and above.span_count >= count:
        return None
    old = "all time steps" if above.span_count is None else f"{above.span_count} spans"
    return replace(above, span_count=count), f"{old} -> {count} spans of time", EXACT


def _in_pieces(size: int, above: Plan) -> Change | None:
    # Gradients are summed over the micro-batches now, so none can be used up in backward.
    below = replace(above, micro_batch_size=size, update_in_backward=False)
    return below, f"micro-batch {above.micro_batch_size} -> {size}", OTHER_BATCHES


def _predicted(plan: Plan, predict: Callable[[Setting], "Prediction"]) -> Plan:
    parts = dict(predict(Setting.of(plan)).parts)
    return replace(plan, predicted_peak_bytes=sum(parts.values()), parts=parts)
