"""Spans of time with few membranes: what they keep between spans is made again instead, a span at a time.

`SpanReplay` keeps a step of membranes before each span, and the spikes of all time steps at one bit each. Here at most
``count`` membranes of a neuron stand at a time, and spikes of one span. Each sweep back through the spans makes the
others again, going forward from one that is kept (`revedge.binomial`): one convolution per unit in front of a
neuron and span gone through, and one for the spikes of the span itself. The first neuron reads the stream, so its
membranes cost no convolution, and none is kept: they are made again from rest.

Bits that the strategy kept for the backward pass stay, but for the first neuron's: they follow from the stream once it
is rebuilt, so the block at work frees the memory that the bits of one span take, and more.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from revedge.binomial import ways_back
from revedge.engine.output import Output
from revedge.engine.replay import BranchTape
from revedge.engine.run import Given
from revedge.engine.signal import Signal, planes_per_chunk
from revedge.engine.span import Span
from revedge.engine.span_replay import SpanReplay
from revedge.engine.unit import Branch
from revedge.engine.vjp import Gradients

_Membranes = dict[int, Tensor]  # by level, from 1 on; empty: at rest


class FewMembranes(SpanReplay):
    """`SpanReplay` with at most ``count`` membranes of each neuron."""

    _keeps_membranes = False

    def __init__(
        self,
        branch: Branch,
        tape: BranchTape,
        x: Tensor | Output | None,
        slab_bytes: int | None,
        spans: list[Span],
        count: int,
    ) -> None:
        super().__init__(branch, tape, x, slab_bytes, spans)
        self.count = count
        self.shapes: dict[int, torch.Size] = {}  # of what the neurons give out, after `undo`
        self.made = [0] + [i for i, kept in enumerate(tape.units) if i and kept.signal is None]
        self.before: dict[int, _Membranes] = {}  # kept, by the index of the span behind
        self.at_hand: _Membranes = {}
        self.spikes: dict[int, Signal] = {}  # of the span at work, by level

    def undo(self, stream: Tensor | None, given: Given, gradients: Gradients) -> None:
        """See `Replay`."""
        super().undo(stream, given, gradients)
        self.x_comes_late = False  # no sweep is needed for its sake
        self.outputs.clear()
        for level, kept in enumerate(self.tape.units):
            assert kept.signal is not None
            self.shapes[level] = kept.signal.shape
            if level in self.made:
                kept.signal = None

    def _output_of(self, level: int) -> Output:
        if level in self.shapes and level not in self.outputs:
            unit, kept = self.units[level], self.tape.units[level]
            # Cuts follow from the shape of the whole; its spikes, which are not there, are not looked at.
            whole = Signal(self.shapes[level], dense=self.g)
            self.outputs[level] = Output(unit, whole, kept.chance, self.slab_bytes)
        return super()._output_of(level)

    def _spikes(self, level: int, span: Span, *, last_look: bool = False) -> Signal:
        if level not in self.spikes:
            return super()._spikes(level, span, last_look=last_look)
        if not last_look:
            return self.spikes[level]
        signal = self.spikes.pop(level)
        if planes_per_chunk(signal) < signal.planes:
            return signal
        # One chunk, which would be read as a whole: its bits need not stand beside it.
        return Signal(signal.shape, dense=signal.whole().view(signal.shape))

    def _spans_back(self) -> Iterator[Span]:
        for way in ways_back(len(self.spans), self.count):
            self.at_hand = {}
            self.spikes.clear()
            for index in [index for index in self.before if index > way.goal]:
                del self.before[index]
            v, first = self.before.get(way.start, {}), self._first(way.start)
            for index in range(way.start, way.goal):
                if index in way.stops:
                    self.before[index] = v
                first, v = self._behind(self.spans[index], first, v)
            self.at_hand = v
            del v
            self._make_spikes(self.spans[way.goal], first)
            del first
            yield self.spans[way.goal]
        self.at_hand = {}
        self.spikes.clear()
        self.before.clear()

    def _behind(self, span: Span, first: Tensor | None, v: _Membranes) -> tuple[Tensor, _Membranes]:
        """Return the membranes behind ``span`` from those before it: the first neuron's, and the others'."""
        found: _Membranes = {}
        last = len(self.units) - 1
        for level in range(last + 1):
            y = self._level(level, span)
            before = v.get(level) if level else first
            bits, found[level] = self._answer(level, y, before)
            self.spikes.pop(level - 1, None)
            if level < last:
                self.spikes[level] = Signal(y.shape, bits=bits)
            del y, bits
        return found.pop(0), found

    def _make_spikes(self, span: Span, first: Tensor | None) -> None:
        for level in self.made:
            y = self._level(level, span)
            bits = self._answer(level, y, self.at_hand.get(level) if level else first)[0]
            self.spikes[level] = Signal(y.shape, bits=bits)
            del y, bits

    def _membrane(self, level: int, span: Span) -> Tensor | None:
        # Nobody asks for one of these twice in a sweep.
        return self.at_hand.pop(level, None) if level else self._first(span.index)

    def _first(self, index: int) -> Tensor | None:
        """The first neuron's membrane before span ``index``; None: at rest."""
        v: Tensor | None = None
        for span in self.spans[:index]:
            v = self._answer(0, self._level(0, span), v)[1]
        return v
