"""Forward of a branch with a tape, and its backward from that tape.

The tape holds what the strategy keeps. In the backward pass `Replay` answers two questions, "what
went into unit i" and "what did its neuron say", from the tape where it can and by computing forward
again where it must; the operations, shapes and statistics are those of the forward pass, so the
answers are the same bits.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from revedge import kernels
from revedge.engine.fire import (
    Stats,
    affine,
    fire,
    fire_backward_,
    norm_backward_,
    sums_for,
    take_stats,
)
from revedge.engine.look import look
from revedge.engine.output import Output
from revedge.engine.run import Given
from revedge.engine.signal import Signal
from revedge.engine.slab import (
    Rounded,
    add_slabs,
    check_same_shape,
    fire_slabs,
    fire_slabs_backward_,
    fires_by_slabs,
    undo_slabs_,
)
from revedge.engine.strategy import Place, Saving, keeps_output, what_to_keep
from revedge.engine.tail import Chance, draw, tail_backward
from revedge.engine.unit import GRID_BITS, Branch, Unit, unfold_time
from revedge.engine.vjp import Gradients
from revedge.neurons import BaseNode, ReversibleNode


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
    branch: Branch, x: Given | Signal, saving: Saving, place: Place
) -> tuple[Output, BranchTape]:
    """Run ``x`` ``[T, B, ...]`` through the units; `join` computes the last one's output and normalizes it.

    A `Signal` is what the first unit, which then has neither norm nor neuron, reads; it stays on the tape.
    """
    tape, units = BranchTape(), branch.unit_list()
    if isinstance(x, Signal):
        kept = _UnitTape(None, draw(units[0]), signal=x)
        if saving.keep:
            tape.units.append(kept)
        y = Output(units[0], x, kept.chance, saving.slab_bytes)
    else:
        y = _input_of(branch, Output.of(x.take()))
    for index in range(int(isinstance(x, Signal)), len(units)):
        look()
        unit = units[index]
        keep = what_to_keep(saving, place, unit, index)
        kept = _UnitTape(None, draw(unit))
        if fires_by_slabs(unit, y) and not (keep.pre or keep.spikes):
            kept.stats, signal = fire_slabs(unit, y, None)
        else:
            sums = sums_for(unit.norm, y)
            whole = y.whole(sums)
            kept.stats = None if unit.norm is None else take_stats(unit.norm, whole, sums)
            signal = fire(unit, whole, kept.stats, pack=_packs(unit, saving))
            kept.pre = whole if keep.pre else None
            del whole
        kept.signal = signal if keep.spikes or keep.bits else None
        if saving.keep:
            tape.units.append(kept)
        y = Output(unit, signal, kept.chance, saving.slab_bytes)
        del signal
    return y, tape


def join(branch: Branch, x: Tensor | None, y: Output, tape: BranchTape, saving: Saving) -> Tensor:
    """Return ``x + round(pool(norm(y)))``, exactly; ``x`` None means 0. Overwrites ``x``."""
    if branch.norm is None:
        return y.whole() if x is None else x.add_(y.whole())
    if y.sliced and branch.pool is None and not keeps_output(saving):
        out, tape.stats = add_slabs(branch.norm, x, y)
        return out
    sums = sums_for(branch.norm, y)
    whole = y.whole(sums)
    tape.stats = take_stats(branch.norm, whole, sums)
    tape.out = whole if keeps_output(saving) else None
    return add_rounded(branch, x, whole, tape.stats, sign=1)


def add_rounded(branch: Branch, x: Tensor | None, y: Tensor, stats: Stats, *, sign: int) -> Tensor:
    """Return ``x + sign * round(pool(norm(y)))``, written over ``x``; None means 0."""
    assert branch.norm is not None
    scale, shift, _ = affine(branch.norm, stats)
    y_flat = y.flatten(0, 1)
    if branch.pool is not None:
        y_flat = branch.pool(kernels.norm_forward(y_flat, scale, shift))
        channels = y_flat.shape[1]  # a pool may change it
        scale, shift = scale.new_ones(channels), shift.new_zeros(channels)
    x_flat = None if x is None else x.flatten(0, 1)
    check_same_shape(x_flat, y_flat.shape)
    out = kernels.grid_add(x_flat, y_flat, scale, shift, bits=GRID_BITS, sign=sign, out=x_flat)
    return unfold_time(out, y)


class Replay:
    """Backward of one branch: `undo` its end, then `backward` through its units.

    ``x`` is the branch's input, None where it is only known after `undo` (residual) or is on the tape (fork).
    """

    def __init__(
        self, branch: Branch, tape: BranchTape, x: Tensor | Output | None, slab_bytes: int | None
    ) -> None:
        self.branch, self.tape, self.x, self.slab_bytes = branch, tape, x, slab_bytes
        self.units = branch.unit_list()
        self.inputs: dict[int, Output] = {}
        self.last: Output | None = None
        self.g: Tensor | None = None

    def kept_input(self) -> Tensor | None:
        """The branch's input, where the strategy kept it."""
        return self.tape.units[0].pre

    def redo(self, stream: Tensor | None) -> Tensor:
        """Add the branch's output to ``stream`` once more, by the operations of `join`; overwrites ``stream``."""
        branch, stats, y = self.branch, self.tape.stats, self._output()
        if branch.norm is None:
            return y.whole() if stream is None else stream.add_(y.whole())
        assert stats is not None
        if y.sliced and branch.pool is None:
            # `undo` computes the slabs again: that they never stand together is their point.
            return add_slabs(branch.norm, stream, y, stats)[0]
        return add_rounded(branch, stream, y.whole(), stats, sign=1)

    def undo(self, stream: Tensor | None, given: Given, gradients: Gradients) -> None:
        """Take the branch's output off ``stream``, if given, and go back through the trailing normalization.

        One look at the last unit's output serves both. ``given`` is the gradient of the branch's output.
        """
        branch, stats = self.branch, self.tape.stats
        if branch.norm is None:
            self.last, self.g = None, given.take_writable()
            return
        assert stats is not None
        y = self._output()
        if y.sliced and branch.pool is None and stats.of_batch:
            self.g = undo_slabs_(branch.norm, stream, y, stats, given.take_writable(), gradients)
        else:
            if stream is not None:
                add_rounded(branch, stream, y.whole(), stats, sign=-1)
            self.g = self._trailing_backward(y.whole(), stats, given, gradients)
        self.last = None
        gradients.settle(branch.norm)

    def add_to(self, g_x: Tensor, gradients: Gradients, *, need_input: bool) -> None:
        """Add the gradient of the branch's input to ``g_x``, if needed; after `undo`."""
        part = self.backward(gradients, need_input=need_input)
        if part is not None:
            g_x.add_(part)

    def backward(self, gradients: Gradients, *, need_input: bool) -> Tensor | None:
        """Return the gradient of the branch's input, None if not needed; after `undo`."""
        g, self.g = self.g, None
        assert g is not None
        for index in reversed(range(len(self.units))):
            look()
            unit, kept = self.units[index], self.tape.units[index]
            needed = need_input or index > 0 or _has_parameters_before_tail(unit)
            signal = self._signal(index)
            g_or_none = tail_backward(unit, signal, kept.chance, g, gradients, need_input=needed)
            del g  # the result has memory of its own where its shape is another
            if g_or_none is None:
                gradients.settle(unit)
                return None
            g = self._fire_backward(index, signal, g_or_none, gradients)
            del signal, g_or_none
            gradients.settle(unit)
            kept.pre = kept.signal = None
            self.inputs.pop(index, None)
        return g

    def _fire_backward(self, index: int, signal: Signal, g: Tensor, gradients: Gradients) -> Tensor:
        unit, stats = self.units[index], self.tape.units[index].stats
        if unit.neuron is None and unit.norm is None:
            return g
        if isinstance(unit.neuron, ReversibleNode):
            return fire_backward_(unit, None, signal, stats, g, gradients)
        del signal
        y = self._input(index)
        frozen = stats is not None and not stats.of_batch
        if fires_by_slabs(unit, y) and not frozen:
            return fire_slabs_backward_(unit, y, stats, g, gradients)
        free = index > 0 or y.free  # what lies between two units of the branch is nobody else's
        return fire_backward_(unit, y.whole(), None, stats, g, gradients, y_is_free=free)

    def _trailing_backward(
        self, y: Tensor, stats: Stats, given: Given, gradients: Gradients
    ) -> Tensor:
        branch = self.branch
        assert branch.norm is not None
        # Nobody needs what a convolution gave out any more: the gradient is written there, and ``given`` not copied.
        own = isinstance(self.units[-1].op, nn.Conv2d | nn.Linear)
        if branch.pool is None and stats.of_batch and own and not given.free:
            return norm_backward_(branch.norm, y, given.take(), stats, gradients, over_y=True)
        g = given.take_writable()
        if branch.pool is not None:
            scale, shift, _ = affine(branch.norm, stats)
            z = unfold_time(kernels.norm_forward(y.flatten(0, 1), scale, shift), y)
            pool, signal = Unit(pool=branch.pool), Signal(z.shape, dense=z)
            pooled = tail_backward(pool, signal, Chance(), g, gradients, need_input=True)
            assert pooled is not None
            g = pooled
        return norm_backward_(branch.norm, y, g, stats, gradients)

    def again(self) -> Output:
        """The branch's output, computed again before `undo`; of a branch without pool at its end."""
        y, stats = self._tail(len(self.units) - 1), self.tape.stats
        if self.branch.norm is None:
            return y
        assert stats is not None
        return Rounded(y, self.branch.norm, stats)

    def _output(self) -> Output:
        """Output of the last unit; what the tape kept of it is given away."""
        if self.last is None:
            kept, self.tape.out = self.tape.out, None
            self.last = self._tail(len(self.units) - 1) if kept is None else Output.of(kept)
        return self.last

    def _tail(self, index: int) -> Output:
        """Output of unit ``index``."""
        chance = self.tape.units[index].chance
        return Output(self.units[index], self._signal(index), chance, self.slab_bytes)

    def _signal(self, index: int) -> Signal:
        """Output of the neuron of unit ``index``."""
        unit, kept = self.units[index], self.tape.units[index]
        if kept.signal is not None:
            return kept.signal
        y = self._input(index)
        if fires_by_slabs(unit, y):
            # Kept from here on: a bit per spike, against a convolution for all slabs once more.
            _, kept.signal = fire_slabs(unit, y, kept.stats)
            return kept.signal
        return fire(unit, y.whole(), kept.stats, pack=unit.spikes_are_bits)

    def _input(self, index: int) -> Output:
        """Input of unit ``index``."""
        kept = self.tape.units[index]
        if kept.pre is not None:
            return Output.of(kept.pre)
        if index == 0:
            assert self.x is not None
            x = self.x if isinstance(self.x, Output) else Output.of(self.x)
            return _input_of(self.branch, x) if x.there else x
        if index not in self.inputs:
            self.inputs[index] = self._tail(index - 1)
        return self.inputs[index]


def _input_of(branch: Branch, given: Output) -> Output:
    """The input of the first unit: contiguous, but for an image that a neuron reads at every step."""
    first, x = branch.unit_list()[0], given.whole()
    repeats = isinstance(first.neuron, BaseNode) and first.norm is None and x.stride(0) == 0
    if repeats or x.is_contiguous():
        return given
    return Output.of(x.contiguous(), free=True)


def _packs(unit: Unit, saving: Saving) -> bool:
    """Whether spikes are made at one bit each: always, but where the strategy stores them as float32."""
    return unit.spikes_are_bits and not (saving.keep and saving.strategy == "store")


def _has_parameters_before_tail(unit: Unit) -> bool:
    return any(
        p.requires_grad
        for module in (unit.norm, unit.neuron)
        if module is not None
        for p in module.parameters()
    )
