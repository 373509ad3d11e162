"""Bytes of a branch's backward in spans of t time steps. Mirrors `revedge.engine.span` and `span_replay`.

always            4 B C H W for each membrane that is kept before a span, ceil(T B C H W / 8) for bits that are made
forward sweep     4 t B C H W [y] + ceil(t B C H W / 8) + 2 * 4 B C H W [membranes before and behind]
backward sweep    2 * 4 t B C H W [y and the gradient] + 2 * 4 B C H W [gradients of membranes] and as much for leaks
a norm's sums     256 C until they are taken, and 5 vectors of C numbers
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from revedge.planner.form.branch import Tape
from revedge.planner.form.head import affine, leak_gradient
from revedge.planner.form.meter import Block
from revedge.planner.form.output import Output
from revedge.planner.form.replay import Replay
from revedge.planner.form.shape import Branch, volume
from revedge.planner.form.tail import (
    LANES,
    Context,
    Signal,
    tail_backward,
    tail_forward,
)


@dataclass(slots=True)
class _Sums:
    inv_std: Block
    lanes: Block | None
    results: Block | None = None


class SpanReplay(Replay):
    """`Replay` in spans of so many time steps each."""

    _keeps_membranes = True

    def __init__(
        self, c: Context, branch: Branch, tape: Tape, x: Output | None, spans: list[int]
    ) -> None:
        super().__init__(c, branch, tape, x)
        self.spans = spans
        self.parts = [dataclasses.replace(c, timesteps=steps) for steps in spans]
        self.x_comes_late = x is None
        self.norms = [*(unit.norm for unit in branch.units), branch.norm]
        self.sums: dict[int, _Sums] = {}
        self.membranes: dict[tuple[int, int], Block] = {}
        self.carried: dict[int, tuple[Block, Block | None]] = {}
        self.found = len(branch.units)

    def undo(self, g: Block, gradients: list[Block], *, free: bool = True) -> Block:
        """Return ``g``, which the sweeps read."""
        del free
        top = len(self.branch.units)
        self._forward_sweep(range(int(self.x_comes_late), top))
        self._new_sums(top)
        for index in reversed(range(len(self.parts))):
            y = self._level(top, index)
            affine(self.c.meter, self.tape.planes[top][0], 0)
            self.c.meter.drop(y)
        self._norm_gradients(top, gradients)
        return g

    def backward(self, g: Block, gradients: list[Block], *, need_input: bool) -> Block | None:
        """Use up ``g``; what would be returned has been added by then."""
        del need_input
        m = self.c.meter
        if self.x_comes_late:
            self._forward_sweep(range(1))
        for level in reversed(range(len(self.branch.units))):
            if self.norms[level]:
                self._new_sums(level)
                self._backward_sweep(level, g, gradients)
                self._norm_gradients(level, gradients)
        self._backward_sweep(0, g, gradients)
        self.c.settle(gradients)
        m.drop(g)
        return None

    def close(self) -> None:
        """See `Replay`."""
        super().close()
        m = self.c.meter
        m.drop(*self.membranes.values())
        for sums in self.sums.values():
            m.drop(sums.inv_std, sums.lanes, sums.results)
        self._forget_carried()

    def _forget_carried(self) -> None:
        for each in self.carried.values():
            self.c.meter.drop(*each)
        self.carried.clear()

    def _backward_sweep(self, level: int, g: Block, gradients: list[Block]) -> None:
        self._forget_carried()
        for index in self._spans_back():
            self.c.meter.drop(*self._back(level, index, g, gradients))
        for new in range(level, self.found):
            if self.carried[new][1] is not None:
                gradients.append(leak_gradient(self.c.meter, self._neurons(new)))
        self.found = level

    def _back(
        self, level: int, index: int, g_out: Block, gradients: list[Block]
    ) -> tuple[Block, Block]:
        """What the norm of ``level`` is given in a span, and the gradient of its result."""
        m, part, top = self.c.meter, self.parts[index], len(self.branch.units)
        if level == top:
            return self._level(level, index), m.hold(g_out)
        y_above, g = self._back(level + 1, index, g_out, gradients)
        if level + 1 == top:  # written over y
            y_above, g = g, y_above
        m.drop(y_above)
        unit, signal = self.branch.units[level], self._spikes(level, index, last_look=True)
        first = index == len(self.parts) - 1 if level < self.found else None
        found = tail_backward(part, unit, signal, g, gradients, need_input=True, first=first)
        assert found is not None
        m.drop(g, signal.block)
        y, v = self._level(level, index), self._membrane(level, index)
        vectors = affine(m, self.tape.planes[level][0], 3) if self.norms[level] else []
        before = self.carried.get(level, (None, None))
        g_v = m.floats(self._neurons(level))
        leak = m.floats(self._neurons(level)) if unit.neuron == "leak" else None
        m.drop(v, *vectors, *before)
        self.carried[level] = (g_v, leak)
        return y, found

    def _level(self, level: int, index: int) -> Block:
        if level == 0:
            assert self.x is not None
            return self.c.meter.hold(self.x.whole())
        unit, signal = self.branch.units[level - 1], self._spikes(level - 1, index)
        whole = Output(self.c, unit, signal, self.tape.planes[level])
        cuts = whole.cuts if whole.sliced else None
        y = tail_forward(self.parts[index], unit, signal, cuts)
        self.c.meter.drop(signal.block)
        return y

    def _spikes(self, level: int, index: int, *, last_look: bool = False) -> Signal:
        """Held once more."""
        del index, last_look
        signal = self.tape.units[level].signal
        assert signal is not None
        self.c.meter.hold(signal.block)
        return signal

    def _spans_back(self) -> Iterator[int]:
        """Yield the indices of the spans, from the last to the first."""
        yield from reversed(range(len(self.parts)))

    def _new_sums(self, level: int) -> None:
        m, channels = self.c.meter, self.tape.planes[level][0]
        shift, inv_std = affine(m, channels, 2)
        self.sums[level] = _Sums(inv_std, m.new(2 * channels * LANES * 8))
        m.drop(shift)

    def _norm_gradients(self, level: int, gradients: list[Block]) -> None:
        m, channels, sums = self.c.meter, self.tape.planes[level][0], self.sums[level]
        sums.results = m.floats(4 * channels)
        m.drop(sums.lanes)
        sums.lanes = None
        gradients += [m.floats(channels), m.floats(channels)]

    def _forward_sweep(self, levels: range) -> None:
        m, units = self.c.meter, self.tape.units
        makes = [level for level in levels if units[level].signal is None]
        if not (makes or self._keeps_membranes):
            return
        v: dict[int, Block] = {}
        for index, part in enumerate(self.parts):
            for level in levels:
                if level in v and self._keeps_membranes and index % self._stride(level) == 0:
                    self.membranes[level, index] = m.hold(v[level])
                if level not in makes and index == len(self.parts) - 1:
                    continue
                y = self._level(level, index)
                bits, behind = self._answer(level, part)
                m.drop(v.get(level))
                v[level] = behind
                if units[level].signal is None:
                    plane = self.tape.planes[level]
                    whole = m.new(-(-self.c.planes * volume(plane) // 8))
                    units[level].signal = Signal(plane, whole, dense=False)
                m.drop(y, bits)
        m.drop(*v.values())

    def _stride(self, level: int) -> int:
        return 1 if level else math.isqrt(len(self.parts))

    def _membrane(self, level: int, index: int) -> Block | None:
        """Held once more."""
        m, first = self.c.meter, index - index % self._stride(level)
        v = self.membranes.get((level, first))
        if v is not None:
            m.hold(v)
        for part in self.parts[first:index]:
            bits, behind = self._answer(level, part)
            m.drop(v, bits)
            v = behind
        return v

    def _answer(self, level: int, part: Context) -> tuple[Block, Block]:
        m, plane = self.c.meter, self.tape.planes[level]
        vectors = affine(m, plane[0], 3) if self.norms[level] else []
        bits = m.new(-(-part.planes * volume(plane) // 8))
        v = m.floats(self._neurons(level))
        m.drop(*vectors)
        return bits, v

    def _neurons(self, level: int) -> int:
        return self.c.batch * volume(self.tape.planes[level])
