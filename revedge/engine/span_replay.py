"""A branch's backward in spans of time: no tensor of all time steps but the stream, its gradient and bits.

Whole, the backward of ``x + branch(x)`` holds the branch's gradient beside the stream and its gradient. It need not
stand: of a span of time steps it can be made again from the spikes' bits, once what looks across time is known.

    a norm    needs two sums per channel over all time: one sweep through the spans finds those of the last norm, the
              next one those of the norm before it, and a last sweep brings the gradient to the branch's input.
    a neuron  carries its membrane forward, and the membrane's gradient back. One sweep forward keeps the membranes
              before each span; those of the first neuron are made again from the stream, which costs no convolution.

Sweeps go from the last span to the first, as gradients through neurons must. So do all sums over chunks and planes in
every other backward pass of the engine (`tail_backward`, `kernels.norm_backward_`): the gradients are the same bits.
Spans begin and end where the chunks of all the branch's operators do, so that each is computed as in the forward pass.

Few of the membranes are kept, and no bits of all time steps, by `revedge.engine.few_membranes`.

Time, for a branch of n norms with a convolution in front of each: 1 convolution for the last norm's sums, n - 1 for
the membranes, and in the k-th further sweep (k = 1 ... n) k + 1 or, in the last, n forward, k data gradients and one
weight gradient. Memory: about two tensors of a span and two chunks, and a step of membranes per span and neuron but
the first.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from revedge import kernels
from revedge.engine.fire import add_leak_gradient, affine
from revedge.engine.look import look
from revedge.engine.output import Output
from revedge.engine.replay import BranchTape, Replay, add_rounded
from revedge.engine.run import Given
from revedge.engine.signal import Signal
from revedge.engine.span import Span
from revedge.engine.tail import tail_backward
from revedge.engine.unit import Branch
from revedge.engine.vjp import Gradients, InputsOnly, add_gradient
from revedge.neurons import BaseNode


class SpanReplay(Replay):
    """`Replay` in spans: level k is the input of unit k, level n, of n units, what the trailing norm is given."""

    _keeps_membranes = True

    def __init__(
        self,
        branch: Branch,
        tape: BranchTape,
        x: Tensor | Output | None,
        slab_bytes: int | None,
        spans: list[Span],
    ) -> None:
        super().__init__(branch, tape, x, slab_bytes)
        self.spans = spans
        self.x_comes_late = x is None
        self.norms = [*(unit.norm for unit in self.units), branch.norm]
        self.stats = [*(kept.stats for kept in tape.units), tape.stats]
        self.sums: dict[int, kernels.GradientSums] = {}
        # By level and the index of the span behind.
        self.membranes: dict[tuple[int, int], Tensor] = {}
        self.outputs: dict[int, Output] = {}
        # Of each level, from the span behind: gradients of its neurons' membranes, and of a leak that they learn.
        self.carried: dict[int, tuple[Tensor | None, Tensor | None]] = {}
        self.found = len(self.units)  # parameters of the units from here on have their gradients

    def undo(self, stream: Tensor | None, given: Given, gradients: Gradients) -> None:
        """See `Replay`."""
        self.g = given.take()
        self._forward_sweep(range(int(self.x_comes_late), len(self.units)))
        top = len(self.units)
        stats = self.stats[top]
        assert stats is not None
        sums = self._new_sums(top)
        for span in reversed(self.spans):
            look()
            y = self._level(top, span)
            if stream is not None:
                add_rounded(self.branch, span.of(stream), y, stats, sign=-1)
            sums.add(y.flatten(0, 1), span.of(self.g).flatten(0, 1))
            del y
        self._norm_gradients(top, gradients)

    def add_to(self, g_x: Tensor, gradients: Gradients, *, need_input: bool) -> None:
        """See `Replay`; ``g_x`` may be the gradient of the branch's output itself: a span is read, then added to."""
        del need_input
        if self.x_comes_late:
            self._forward_sweep(range(1))
        for level in reversed(range(len(self.units))):
            if self.norms[level] is not None:
                sums = self._new_sums(level)
                for _, y, g in self._backward_sweep(level, gradients):
                    sums.add(y.flatten(0, 1), g.flatten(0, 1))
                    del y, g
                self._norm_gradients(level, gradients)
        for span, y, g in self._backward_sweep(0, gradients):
            span.of(g_x).add_(self._through_norm(0, y, g))
            del y, g
        gradients.settle(self.branch)

    def _backward_sweep(
        self, level: int, gradients: Gradients
    ) -> Iterator[tuple[Span, Tensor, Tensor]]:
        """Yield, from the last span to the first, what `_back` finds; each neuron begins with no gradient behind it."""
        self.carried.clear()
        for span in self._spans_back():
            look()
            yield span, *self._back(level, span, gradients)
        for new in range(level, self.found):
            neuron = self.units[new].neuron
            assert isinstance(neuron, BaseNode)
            add_leak_gradient(neuron, self.carried[new][1], gradients)
        self.found = level

    def _back(self, level: int, span: Span, gradients: Gradients) -> tuple[Tensor, Tensor]:
        """Return what the norm of ``level`` is given in ``span``, and the gradient of its result.

        Gradients of parameters that have none yet are added on the way.
        """
        if level == len(self.units):
            assert self.g is not None
            return self._level(level, span), span.of(self.g)
        y_above, g = self._back(level + 1, span, gradients)
        g = self._through_norm(level + 1, y_above, g)
        del y_above
        unit, kept = self.units[level], self.tape.units[level]
        wanted = gradients if level < self.found else InputsOnly()
        signal = self._spikes(level, span, last_look=True)
        found = tail_backward(unit, signal, kept.chance, g, wanted, need_input=True)
        assert found is not None
        del g, signal
        y = self._level(level, span)
        return y, self._through_neuron(level, span, y, found)

    def _through_neuron(self, level: int, span: Span, y: Tensor, g: Tensor) -> Tensor:
        """From the gradient of a neuron's spikes to that of its input, written over it."""
        neuron, norm, stats = self.units[level].neuron, self.norms[level], self.stats[level]
        assert isinstance(neuron, BaseNode)
        v, params = self._membrane(level, span), neuron.params()
        g_v, leak = self.carried.get(level, (None, None))
        if norm is None:
            g, g_v, leak = kernels.neuron_backward_(y, v, g, g_v, params, leak=leak)
        else:
            assert stats is not None
            scale, shift, _ = affine(norm, stats)
            g, g_v, leak = kernels.norm_neuron_span_backward_(
                y, scale, shift, v, g, g_v, params, leak=leak
            )
        self.carried[level] = (g_v, leak)
        return g

    def _through_norm(self, level: int, y: Tensor, g: Tensor) -> Tensor:
        """From the gradient of a norm's result to that of its input, whose sums are known."""
        if self.norms[level] is None:
            return g
        over_y = level == len(self.units)  # there ``g`` is the stream's gradient
        found = self.sums[level].apply_(y.flatten(0, 1), g.flatten(0, 1), over_y=over_y)
        return found.view(y.shape)

    def _level(self, level: int, span: Span) -> Tensor:
        """What the norm of ``level`` is given in ``span``."""
        if level == 0:
            assert isinstance(self.x, Tensor)
            return span.of(self.x)
        return self._output_of(level - 1).part(self._spikes(level - 1, span))

    def _output_of(self, level: int) -> Output:
        """What the tail of unit ``level`` gives out; never whole, but by the cuts of the whole."""
        if level not in self.outputs:
            self.outputs[level] = self._tail(level)
        return self.outputs[level]

    def _spikes(self, level: int, span: Span, *, last_look: bool = False) -> Signal:
        """Output of the neuron of ``level`` in ``span``; ``last_look``: not asked for again in this sweep."""
        del last_look
        kept = self.tape.units[level].signal
        assert kept is not None
        return kept.steps(span.first, span.last)

    def _spans_back(self) -> Iterator[Span]:
        """From the last to the first; of each, what came before it is there when it is asked for."""
        yield from reversed(self.spans)

    def _new_sums(self, level: int) -> kernels.GradientSums:
        norm, stats = self.norms[level], self.stats[level]
        assert norm is not None
        assert stats is not None
        _, _, inv_std = affine(norm, stats)
        self.sums[level] = kernels.GradientSums(stats.mean, inv_std, norm.weight)
        return self.sums[level]

    def _norm_gradients(self, level: int, gradients: Gradients) -> None:
        norm = self.norms[level]
        assert norm is not None
        g_weight, g_bias = self.sums[level].gradients()
        add_gradient(gradients, norm.weight, g_weight)
        add_gradient(gradients, norm.bias, g_bias)

    def _forward_sweep(self, levels: range) -> None:
        """Keep the neurons' membranes before spans, and make the bits that the strategy did not keep."""
        makes = [level for level in levels if self.tape.units[level].signal is None]
        if not (makes or self._keeps_membranes):
            return
        v: dict[int, Tensor] = {}
        for span in self.spans:
            look()
            for level in levels:
                if level in v and self._keeps_membranes and span.index % self._stride(level) == 0:
                    self.membranes[level, span.index] = v[level]
                if level not in makes and span is self.spans[-1]:
                    continue
                y = self._level(level, span)
                bits, v[level] = self._answer(level, y, v.get(level))
                if level in makes:
                    shape = torch.Size([self.spans[-1].last, *y.shape[1:]])
                    self._add_bits(level, span, shape, bits)
                del y, bits

    def _stride(self, level: int) -> int:
        """Of how many spans one membrane is kept; those between are made again, where that takes no convolution."""
        return 1 if level else math.isqrt(len(self.spans))

    def _membrane(self, level: int, span: Span) -> Tensor | None:
        """The membrane of the neuron of ``level`` before ``span``; None: at rest."""
        kept = span.index - span.index % self._stride(level)
        v = self.membranes.get((level, kept))
        for before in self.spans[kept : span.index]:
            v = self._answer(level, self._level(level, before), v)[1]
        return v

    def _answer(self, level: int, y: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the neuron's bits for ``y``, and its membrane behind it."""
        neuron, norm, stats = self.units[level].neuron, self.norms[level], self.stats[level]
        assert isinstance(neuron, BaseNode)
        if norm is None:
            return kernels.neuron_forward(y, v, neuron.params(), pack=True)
        assert stats is not None
        scale, shift, _ = affine(norm, stats)
        return kernels.norm_neuron_forward(y, scale, shift, v, neuron.params(), pack=True)

    def _add_bits(self, level: int, span: Span, shape: torch.Size, bits: Tensor) -> None:
        kept = self.tape.units[level]
        if kept.signal is None:
            kept.signal = Signal(shape, bits=bits.new_empty((math.prod(shape) + 7) // 8))
        kept.signal.steps(span.first, span.last).like[: bits.numel()] = bits
