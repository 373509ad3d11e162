"""Bytes of a branch's backward pass. Mirrors `revedge.engine.replay`; what is on the tape: branch.py."""

from revedge.planner.form.branch import Tape, add_rounded
from revedge.planner.form.head import (
    affine,
    fire,
    fire_backward,
    norm_backward,
    reversible_backward,
)
from revedge.planner.form.meter import Block
from revedge.planner.form.output import (
    Output,
    Rounded,
    add_slabs,
    fire_slabs,
    fire_slabs_backward,
    undo_slabs,
)
from revedge.planner.form.shape import Branch, Plane, Unit
from revedge.planner.form.tail import Context, Signal, tail_backward


class Replay:
    """Backward of one branch; ``x`` is its input, which its owner drops, None where it is on the tape."""

    def __init__(self, c: Context, branch: Branch, tape: Tape, x: Output | None) -> None:
        self.c, self.branch, self.tape, self.x = c, branch, tape, x
        self.inputs: dict[int, Output] = {}
        self.last: Output | None = None

    def undo(self, g: Block, gradients: list[Block], *, free: bool = True) -> Block:
        """Let go of ``g``, the gradient of the branch's output, not to be written to unless it is ``free``; return that
        of the last unit's.
        """
        c, m, branch = self.c, self.c.meter, self.branch
        if not branch.norm:
            g = self._writable(g, free=free)
        else:
            y, op = self.output(), branch.units[-1].op
            if y.sliced and not branch.pools:
                g = self._writable(g, free=free)
                undo_slabs(c, y, gradients)
            else:
                whole = y.whole()
                if not branch.pools:
                    affine(m, y.plane[0], 0)  # where the stream is rebuilt
                if not free and not branch.pools and op is not None and op.is_matrix:
                    m.drop(g)
                    g = m.hold(whole)  # the gradient is written there
                else:
                    g = self._writable(g, free=free)
                g = self._trailing_backward(y.plane, g, gradients)
            c.settle(gradients)
        if self.last is not None:
            self.last.drop()
            self.last = None
        return g

    def _writable(self, g: Block, *, free: bool) -> Block:
        if free:
            return g
        self.c.meter.drop(g)
        return self.c.whole(self.tape.planes[-1])

    def backward(self, g: Block, gradients: list[Block], *, need_input: bool) -> Block | None:
        """Use up ``g``; return the gradient of the branch's input."""
        c, m, units = self.c, self.c.meter, self.branch.units
        for index in reversed(range(len(units))):
            with m.site("unit", index):
                unit = units[index]
                needed = need_input or index > 0 or unit.norm or unit.neuron == "leak"
                signal = self.signal(index)
                part = tail_backward(c, unit, signal, g, gradients, need_input=needed)
                m.drop(g)
                if part is None:
                    m.drop(signal.block)
                    c.settle(gradients)
                    return None
                if unit.neuron == "reversible":
                    reversible_backward(c, unit, self.tape.planes[index], gradients)
                    g = part
                else:
                    g = self._fire_backward(index, part, gradients)
                m.drop(signal.block)
                c.settle(gradients)
                self._forget(index)
        return g

    def close(self) -> None:
        """The tape is used up."""
        m = self.c.meter
        for index, kept in enumerate(self.tape.units):
            self._forget(index)
            m.drop(*kept.stats)
        m.drop(*self.tape.stats, self.tape.out)

    def _forget(self, index: int) -> None:
        kept = self.tape.units[index]
        self.c.meter.drop(kept.pre, None if kept.signal is None else kept.signal.block)
        kept.pre = kept.signal = None
        if index in self.inputs:
            self.inputs.pop(index).drop()

    def _fire_backward(self, index: int, g: Block, gradients: list[Block]) -> Block:
        c, unit = self.c, self.branch.units[index]
        if not unit.neuron:
            return g
        y = self.input(index)
        if y.sliced:
            made = fire_slabs_backward(c, unit, y, g, gradients)
        else:
            free = (index > 0 or y.free) and not y.expanded
            made = fire_backward(c, unit, y.plane, y.whole(), g, gradients, y_is_free=free)
        self._put_back(index, y)
        return made

    def _trailing_backward(self, plane: Plane, g: Block, gradients: list[Block]) -> Block:
        c, m, pools = self.c, self.c.meter, self.branch.pools
        if pools:
            vectors = affine(m, plane[0], 3)
            z = Signal(plane, c.whole(plane), dense=True)
            unit = Unit(norm=False, neuron="", pools=pools, dropout=False, op=None)
            made = tail_backward(c, unit, z, g, gradients, need_input=True)
            assert made is not None
            norm_backward(c, plane[0], gradients)
            m.drop(g, z.block, *vectors)
            return made
        norm_backward(c, plane[0], gradients)
        return g

    def output(self) -> Output:
        """Output of the last unit; what the tape kept of it is given away."""
        if self.last is None:
            kept, self.tape.out = self.tape.out, None
            plane = self.tape.planes[-1]
            last = len(self.branch.units) - 1
            self.last = self._tail(last) if kept is None else Output.of(self.c, kept, plane)
        return self.last

    def again(self) -> Output:
        """The branch's output, computed again before `undo`."""
        y = self._tail(len(self.branch.units) - 1)
        return Rounded(y) if self.branch.norm else y

    def redo(self, stream: Block | None) -> Block:
        """Add the branch's output to ``stream`` once more, which it takes over."""
        y = self.output()
        if not self.branch.norm:
            whole = y.whole()
            return self.c.meter.hold(whole) if stream is None else stream
        if y.sliced and not self.branch.pools:
            return add_slabs(self.c, stream, y, self.tape.stats)[0]
        y.whole()
        return add_rounded(self.c, self.branch, stream, y.plane)

    def _tail(self, index: int) -> Output:
        return Output(
            self.c, self.branch.units[index], self.signal(index), self.tape.planes[index + 1]
        )

    def signal(self, index: int) -> Signal:
        """Output of the neuron of unit ``index``, held once more."""
        c, unit, kept = self.c, self.branch.units[index], self.tape.units[index]
        if kept.signal is not None:
            c.meter.hold(kept.signal.block)
            return kept.signal
        y = self.input(index)
        if y.sliced and unit.spikes:
            _, kept.signal = fire_slabs(c, unit, y, kept.stats)
            c.meter.hold(kept.signal.block)
            return kept.signal
        found = fire(c, unit, y.plane, y.whole(), pack=unit.spikes)
        self._put_back(index, y)
        return found

    def _put_back(self, index: int, y: Output) -> None:
        if y is not self.x and index not in self.inputs:
            y.drop()  # it is on the tape

    def input(self, index: int) -> Output:
        """Input of unit ``index``; one that is on the tape is held once more."""
        kept, plane = self.tape.units[index], self.tape.planes[index]
        if kept.pre is not None:
            return Output.of(self.c, self.c.meter.hold(kept.pre), plane)
        if index == 0:
            assert self.x is not None
            return self.x
        if index not in self.inputs:
            self.inputs[index] = self._tail(index - 1)
        return self.inputs[index]
