"""Forward of a branch with a tape, and its backward from that tape.

The tape holds what the strategy keeps. In the backward pass `Replay` answers two questions, "what
went into unit i" and "what did its neuron say", from the tape where it can and by computing forward
again where it must; the operations, shapes and statistics are those of the forward pass, so the
answers are the same bits.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from revedge import kernels
from revedge.engine.fire import Stats, affine, fire, fire_backward_, norm_backward_, take_stats
from revedge.engine.run import Given
from revedge.engine.signal import Signal
from revedge.engine.strategy import Place, keeps_output, what_to_keep
from revedge.engine.tail import Chance, draw, tail_backward, tail_forward
from revedge.engine.unit import GRID_BITS, Branch, Unit, unfold_time
from revedge.engine.vjp import Gradients
from revedge.neurons import ReversibleNode


@dataclass(slots=True)
class _UnitTape:
    stats: Stats | None
    chance: Chance
    pre: Tensor | None = None
    signal: Signal | None = None


@dataclass(slots=True)
class BranchTape:
    """What one branch keeps."""

    units: list[_UnitTape] = field(default_factory=list)
    out: Tensor | None = None
    stats: Stats | None = None

    @property
    def keeps_input(self) -> bool:
        """Whether the branch's own input is on the tape, so that nobody may write to it."""
        return bool(self.units) and (self.units[0].pre is not None)


def branch_forward(
    branch: Branch, x: Given, strategy: str | None, place: Place
) -> tuple[Tensor, BranchTape]:
    """Run ``x`` ``[T, B, ...]`` through the units; the trailing normalization is left to `join`.

    ``strategy`` None keeps nothing.
    """
    tape = BranchTape()
    y = x.take().contiguous()
    for index, unit in enumerate(branch.unit_list()):
        stats = None if unit.norm is None else take_stats(unit.norm, y)
        kept = _UnitTape(stats, draw(unit))
        signal = fire(unit, y, stats, pack=_packs(unit, strategy))
        if strategy is not None:
            keep = what_to_keep(strategy, place, unit, index)
            kept.pre = y if keep.pre else None
            kept.signal = signal if keep.spikes or keep.bits else None
            tape.units.append(kept)
        del y
        y = tail_forward(unit, signal, kept.chance)
        del signal
    if branch.norm is not None:
        tape.stats = take_stats(branch.norm, y)
        tape.out = y if strategy is not None and keeps_output(strategy) else None
    return y, tape


def join(
    branch: Branch, x: Tensor | None, y: Tensor, stats: Stats | None, *, sign: int = 1
) -> Tensor:
    """Return ``x + sign * round(pool(norm(y)))``, exactly; ``x`` None means 0. Overwrites ``x``."""
    if branch.norm is None:
        return y if x is None else (x.add_(y) if sign > 0 else x.sub_(y))
    assert stats is not None
    scale, shift, _ = affine(branch.norm, stats)
    y_flat = y.flatten(0, 1)
    if branch.pool is not None:
        y_flat = branch.pool(kernels.norm_forward(y_flat, scale, shift))
        scale, shift = torch.ones_like(scale), torch.zeros_like(shift)
    x_flat = None if x is None else x.flatten(0, 1)
    out = kernels.grid_add(x_flat, y_flat, scale, shift, bits=GRID_BITS, sign=sign, out=x_flat)
    return unfold_time(out, y)


class Replay:
    """Backward of one branch. ``x`` is the branch's input, None where it is only known after `output` (residual)."""

    def __init__(self, branch: Branch, tape: BranchTape, x: Tensor | None) -> None:
        self.branch, self.tape, self.x = branch, tape, x
        self.units = branch.unit_list()
        self.pre: dict[int, Tensor] = {}

    def output(self) -> Tensor:
        """What the last unit gave out, before the trailing normalization."""
        if self.tape.out is None:
            self.tape.out = self._operate(len(self.units) - 1)
        return self.tape.out

    def kept_input(self) -> Tensor | None:
        """The branch's input, where the strategy kept it."""
        return self.tape.units[0].pre

    def backward(self, given: Given, gradients: Gradients, *, need_input: bool) -> Tensor | None:
        """Return the gradient of the branch's input, None if not needed, from that of its output."""
        g = self._trailing_backward(given.take_writable(), gradients)
        for index in reversed(range(len(self.units))):
            unit, kept = self.units[index], self.tape.units[index]
            needed = need_input or index > 0 or _has_parameters_before_tail(unit)
            signal = self._signal(index)
            g_or_none = tail_backward(unit, signal, kept.chance, g, gradients, need_input=needed)
            if g_or_none is None:
                return None
            g = g_or_none
            if isinstance(unit.neuron, ReversibleNode):
                g = fire_backward_(unit, None, signal.dense, kept.stats, g, gradients)
            else:
                del signal
                g = fire_backward_(unit, self._pre(index), None, kept.stats, g, gradients)
            kept.pre = kept.signal = None
            self.pre.pop(index, None)
        return g

    def _trailing_backward(self, g: Tensor, gradients: Gradients) -> Tensor:
        branch, stats = self.branch, self.tape.stats
        if branch.norm is None:
            return g
        assert stats is not None
        y = self.output()
        self.tape.out = None
        if branch.pool is not None:
            scale, shift, _ = affine(branch.norm, stats)
            z = unfold_time(kernels.norm_forward(y.flatten(0, 1), scale, shift), y)
            pool, signal = Unit(pool=branch.pool), Signal(z.shape, dense=z)
            pooled = tail_backward(pool, signal, Chance(), g, gradients, need_input=True)
            assert pooled is not None
            g = pooled
        return norm_backward_(branch.norm, y, g, stats, gradients)

    def _operate(self, index: int) -> Tensor:
        """Output of unit ``index``."""
        return tail_forward(self.units[index], self._signal(index), self.tape.units[index].chance)

    def _signal(self, index: int) -> Signal:
        """Output of the neuron of unit ``index``."""
        unit, kept = self.units[index], self.tape.units[index]
        if kept.signal is not None:
            return kept.signal
        return fire(unit, self._pre(index), kept.stats, pack=unit.spikes_are_bits)

    def _pre(self, index: int) -> Tensor:
        """Input of unit ``index``."""
        kept = self.tape.units[index]
        if kept.pre is not None:
            return kept.pre
        if index == 0:
            assert self.x is not None
            return self.x.contiguous()
        if index not in self.pre:
            self.pre[index] = self._operate(index - 1)
        return self.pre[index]


def _packs(unit: Unit, strategy: str | None) -> bool:
    """Whether spikes are made at one bit each: always, but where the strategy stores them as float32."""
    return unit.spikes_are_bits and strategy != "store"


def _has_parameters_before_tail(unit: Unit) -> bool:
    return any(
        p.requires_grad
        for module in (unit.norm, unit.neuron)
        if module is not None
        for p in module.parameters()
    )
