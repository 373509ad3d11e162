"""Which way a branch goes backward: whole, in spans of time, or in spans with few membranes."""

from typing import Protocol

from torch import Tensor

from revedge.engine.few_membranes import FewMembranes
from revedge.engine.replay import BranchTape, Replay
from revedge.engine.span import can_be_cut, cut_time
from revedge.engine.span_replay import SpanReplay
from revedge.engine.unit import Branch


class Wanted(Protocol):
    """What is asked for; see `revedge.engine.run.Run`."""

    slab_bytes: int | None
    span_count: int | None
    membrane_count: int | None
    most_spans: int


def replay_of(
    branch: Branch, tape: BranchTape, x: Tensor | None, stream: Tensor, wanted: Wanted
) -> Replay:
    """Return what replays ``branch`` backward: in spans if asked for, possible and more than one.

    Args:
        branch, tape, x: as `Replay` has them.
        stream: of the shape of the branch's input.
        wanted: the run.
    """
    if wanted.span_count is not None and can_be_cut(branch, tape):
        spans = cut_time(branch, stream, wanted.span_count)
        wanted.most_spans = max(wanted.most_spans, len(spans))
        if len(spans) > 1:
            few = wanted.membrane_count
            if few is None:
                return SpanReplay(branch, tape, x, wanted.slab_bytes, spans)
            return FewMembranes(branch, tape, x, wanted.slab_bytes, spans, few)
    return Replay(branch, tape, x, wanted.slab_bytes)
