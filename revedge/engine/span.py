"""Spans of time steps: which branches can go backward in them, and where one ends.

A span ends where chunks of planes do (`revedge.engine.signal.chunks`), for every operator of the branch, so that each
computes in a span what it computed in the forward pass, bit for bit.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from revedge.engine.replay import BranchTape
from revedge.engine.signal import Signal, planes_per_chunk
from revedge.engine.tail import tail_shape
from revedge.engine.unit import Branch
from revedge.engine.vjp import is_known
from revedge.neurons import BaseNode


@dataclass(frozen=True, slots=True)
class Span:
    """Time steps ``first`` to ``last``, the ``index``-th of the spans."""

    index: int
    first: int
    last: int

    def of(self, x: Tensor) -> Tensor:
        """These steps of ``x`` ``[T, ...]``; no copy."""
        return x[self.first : self.last]


def can_ever_be_cut(branch: Branch) -> bool:
    """Whether each unit is norm, neuron and an operator that works plane by plane, without chance."""
    if branch.norm is None or branch.pool is not None:
        return False
    if not isinstance(branch.unit_list()[-1].op, nn.Conv2d | nn.Linear):
        return False
    parts = [*branch.unit_list(), branch.norm]
    if sum(len(list(part.parameters())) for part in parts) != len(list(branch.parameters())):
        return False  # one that two units share would get its gradient's parts in another order
    return all(
        isinstance(unit.neuron, BaseNode)
        and unit.pool is None
        and unit.op is not None
        and is_known(unit.op)
        and not unit.dropout
        for unit in branch.unit_list()
    )


def can_be_cut(branch: Branch, tape: BranchTape) -> bool:
    """Whether ``branch`` can be cut with what is on its tape: bits, not its output, and statistics of the batch."""
    if tape.out is not None or not can_ever_be_cut(branch):
        return False
    units = zip(branch.unit_list(), tape.units, strict=True)
    found = [tape.stats, *(kept.stats for unit, kept in units if unit.norm is not None)]
    return all(stats is not None and stats.of_batch for stats in found)


def cut_time(branch: Branch, x: Tensor, span_count: int) -> list[Span]:
    """Return at most ``span_count`` spans of ``x`` ``[T, B, ...]``, the branch's input, as long as chunks allow."""
    timesteps, batch = x.shape[:2]
    planes, shape = batch, x.shape
    for unit in branch.unit_list():
        signal = Signal(shape, dense=x)
        planes = math.lcm(planes, planes_per_chunk(signal))
        shape = tail_shape(unit, signal)
    least = planes // batch
    steps = -(-timesteps // (span_count * least)) * least
    starts = range(0, timesteps, steps)
    return [Span(i, t, min(t + steps, timesteps)) for i, t in enumerate(starts)]
