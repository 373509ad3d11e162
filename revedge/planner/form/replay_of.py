"""Which replay of a branch the formulas follow. Mirrors `revedge.engine.replay_of` and `span`."""

import math

from revedge.planner.form.branch import Tape
from revedge.planner.form.few_membranes import FewMembranes
from revedge.planner.form.output import Output
from revedge.planner.form.replay import Replay
from revedge.planner.form.shape import Branch, Plane, volume
from revedge.planner.form.span_replay import SpanReplay
from revedge.planner.form.tail import Context, planes_per_chunk

_STRATEGIES = ("keep-spikes", "reverse")  # that keep no float tensor


def replay_of(c: Context, branch: Branch, tape: Tape, x: Output | None) -> Replay:
    """What replays ``branch`` backward; see the engine's function of this name."""
    if c.span_count is not None and c.strategy in _STRATEGIES and _can_be_cut(c, branch):
        spans = _cut_time(c, tape.planes[:-1], c.span_count)
        c.meter.most_spans = max(c.meter.most_spans, len(spans))
        if len(spans) > 1:
            if c.membrane_count is None:
                return SpanReplay(c, branch, tape, x, spans)
            return FewMembranes(c, branch, tape, x, spans, c.membrane_count)
    return Replay(c, branch, tape, x)


def _can_be_cut(c: Context, branch: Branch) -> bool:
    last = branch.units[-1].op
    return (
        branch.norm
        and not branch.pools
        and last is not None
        and last.is_matrix
        and all(
            unit.spikes and not unit.pools and unit.op is not None and not unit.dropout
            for unit in branch.units
        )
        and c.keep
    )


def _cut_time(c: Context, planes: list[Plane], span_count: int) -> list[int]:
    """Return the time steps of each span."""
    chunks = (planes_per_chunk(c, plane, volume(plane)) for plane in planes)
    least = math.lcm(c.batch, *chunks) // c.batch
    steps = -(-c.timesteps // (span_count * least)) * least
    full, rest = divmod(c.timesteps, steps)
    return [steps] * full + [rest] * bool(rest)
