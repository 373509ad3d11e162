"""Bytes of a branch's backward in spans of t time steps with few membranes. Mirrors `revedge.engine.few_membranes`.

between spans     k * 4 B C H W for each neuron but the first
a span at work    ceil(t B C H W / 8) for the spikes of each neuron, 4 B C H W [membrane before it]
on the way to it  4 t B C H W [y] + 2 * 4 B C H W [membranes before and behind] for each neuron
not there         the kept bits of the first neuron
"""

from collections.abc import Iterator

from revedge.binomial import ways_back
from revedge.planner.form.branch import Tape
from revedge.planner.form.meter import Block
from revedge.planner.form.output import Output
from revedge.planner.form.shape import Branch, volume
from revedge.planner.form.span_replay import SpanReplay
from revedge.planner.form.tail import Context, Signal, planes_per_chunk

_Membranes = dict[int, Block]


class FewMembranes(SpanReplay):
    """`SpanReplay` with at most ``count`` membranes of each neuron."""

    _keeps_membranes = False

    def __init__(
        self, c: Context, branch: Branch, tape: Tape, x: Output | None, spans: list[int], count: int
    ) -> None:
        super().__init__(c, branch, tape, x, spans)
        self.count = count
        self.made = [0] + [i for i, kept in enumerate(tape.units) if i and kept.signal is None]
        self.before: dict[int, _Membranes] = {}
        self.at_hand: _Membranes = {}
        self.spikes: dict[int, Signal] = {}

    def undo(self, g: Block, gradients: list[Block], *, free: bool = True) -> Block:
        """See `SpanReplay`."""
        g = super().undo(g, gradients, free=free)
        self.x_comes_late = False
        for level in self.made:
            self._forget(level)
        return g

    def _spikes(self, level: int, index: int, *, last_look: bool = False) -> Signal:
        if level not in self.spikes:
            return super()._spikes(level, index, last_look=last_look)
        m, part, signal = self.c.meter, self.parts[index], self.spikes[level]
        if not last_look:
            m.hold(signal.block)
            return signal
        self.spikes.pop(level)
        if planes_per_chunk(part, signal.plane, volume(signal.plane)) < part.planes:
            return signal
        dense = Signal(signal.plane, part.whole(signal.plane), dense=True)
        m.drop(signal.block)
        return dense

    def _spans_back(self) -> Iterator[int]:
        m = self.c.meter
        for way in ways_back(len(self.parts), self.count):
            self._leave()
            for index in [index for index in self.before if index > way.goal]:
                m.drop(*self.before.pop(index).values())
            v, first = self._held(self.before.get(way.start, {})), self._first(way.start)
            for index in range(way.start, way.goal):
                if index in way.stops:
                    self.before[index] = self._held(v)
                found_first, found = self._behind(index, first, v)
                m.drop(first, *v.values())
                first, v = found_first, found
            self.at_hand = v
            self._make_spikes(way.goal)
            m.drop(first)
            yield way.goal
        self._leave()
        for each in self.before.values():
            m.drop(*each.values())
        self.before.clear()

    def _held(self, v: _Membranes) -> _Membranes:
        return {level: self.c.meter.hold(block) for level, block in v.items()}

    def _leave(self) -> None:
        m = self.c.meter
        m.drop(*self.at_hand.values(), *(signal.block for signal in self.spikes.values()))
        self.at_hand = {}
        self.spikes.clear()

    def _behind(self, index: int, first: Block | None, v: _Membranes) -> tuple[Block, _Membranes]:
        del first, v  # which the caller holds
        m, found = self.c.meter, _Membranes()
        last = len(self.branch.units) - 1
        for level in range(last + 1):
            y = self._level(level, index)
            bits, found[level] = self._answer(level, self.parts[index])
            if level:
                m.drop(self.spikes.pop(level - 1).block)
            if level < last:
                self.spikes[level] = Signal(self.tape.planes[level], m.hold(bits), dense=False)
            m.drop(y, bits)
        return found.pop(0), found

    def _make_spikes(self, index: int) -> None:
        m = self.c.meter
        for level in self.made:
            y = self._level(level, index)
            bits, behind = self._answer(level, self.parts[index])
            m.drop(behind, y)
            self.spikes[level] = Signal(self.tape.planes[level], bits, dense=False)

    def _membrane(self, level: int, index: int) -> Block | None:
        return self.at_hand.pop(level, None) if level else self._first(index)

    def _first(self, index: int) -> Block | None:
        m, v = self.c.meter, None
        for part in self.parts[:index]:
            bits, behind = self._answer(0, part)
            m.drop(bits, v)
            v = behind
        return v
