"""Bytes of the parts of a tail: pools, dropout, operator, for n planes each. Mirrors `revedge.engine.tail` and `vjp`.

A stage's ``forward`` uses up its input and returns its result; ``backward`` returns the gradient of its input, and
leaves that of its result held.
"""

from dataclasses import dataclass

from revedge.planner.form.attention import attend, attend_back
from revedge.planner.form.meter import Block, Meter
from revedge.planner.form.shape import Op, Plane, Pool, volume
from revedge.planner.workspace import Convolution


@dataclass(slots=True)
class Part:
    """A gradient; ``repeated`` over the pixels of a plane without memory of its own."""

    block: Block
    repeated: bool = False


@dataclass(slots=True)
class Pools:
    """Pools in turn: one module, or a sequence that runs as one."""

    pools: tuple[Pool, ...]

    def of(self, plane: Plane) -> Plane:
        """Shape of its result."""
        for pool in self.pools:
            plane = pool.of(plane)
        return plane

    def forward(
        self, m: Meter, x: Block, plane: Plane, n: int, channels: int = 0
    ) -> tuple[Block, Plane]:
        """Use up ``x``."""
        del channels
        m.hold(x)  # until the stage is done
        current = x
        for pool in self.pools:
            plane = pool.of(plane)
            made = current if pool.kind == "flatten" else m.floats(n * volume(plane))
            if made is not current:
                m.drop(current)
            current = made
        m.drop(x)
        return current, plane

    def backward(
        self,
        m: Meter,
        plane: Plane,
        n: int,
        g: Part,
        gradients: list[Block],
        *,
        need_input: bool,
        first: bool | None,
    ) -> Part | None:
        """Leave ``g`` held; of a first chunk, parameters' gradients stay."""
        del gradients, first
        if not need_input:
            return None
        planes, again = [plane], list[Block]()
        for pool in self.pools[:-1]:  # a sequence runs forward again
            planes.append(pool.of(planes[-1]))
            again.append(m.floats(n * volume(planes[-1])))
        current = Part(m.hold(g.block))
        for pool in reversed(self.pools):
            given = planes.pop()
            before = current
            current = _pool_backward(m, pool, given, n, before)
            m.drop(before.block, again.pop() if again else None)
        return current


def _pool_backward(m: Meter, pool: Pool, plane: Plane, n: int, g: Part) -> Part:
    if pool.kind == "flatten":
        return Part(m.hold(g.block))
    if pool.kind == "mean":
        return Part(m.floats(n * plane[0]), repeated=True)
    copy = m.floats(n * volume(pool.of(plane))) if g.repeated else None
    made = Part(m.floats(n * volume(plane)))
    m.drop(copy)
    return made


@dataclass(slots=True)
class Dropout:
    """One mask of a sequence's planes."""

    timesteps: int

    def of(self, plane: Plane) -> Plane:
        """Shape of its result."""
        return plane

    def forward(
        self, m: Meter, x: Block, plane: Plane, n: int, channels: int = 0
    ) -> tuple[Block, Plane]:
        """Use up ``x``."""
        del channels
        made = self._masked(m, plane, n)
        m.drop(x)
        return made, plane

    def backward(
        self,
        m: Meter,
        plane: Plane,
        n: int,
        g: Part,
        gradients: list[Block],
        *,
        need_input: bool,
        first: bool | None,
    ) -> Part | None:
        """Leave ``g`` held; of a first chunk, parameters' gradients stay."""
        del g, gradients, first
        return Part(self._masked(m, plane, n)) if need_input else None

    def _masked(self, m: Meter, plane: Plane, n: int) -> Block:
        one = n // self.timesteps * volume(plane)
        m.note(4 * one, one)  # random numbers, which of them are kept
        kept = m.new(one)
        m.note(4 * one, 4 * one)  # as factors, unscaled and scaled
        scaled = m.floats(one)
        made = m.floats(n * volume(plane))
        m.drop(kept, scaled)
        return made


@dataclass(slots=True)
class Operator:
    """Convolution, linear layer, attention or vote; gradients of weights stay from the first chunk on."""

    op: Op

    def of(self, plane: Plane) -> Plane:
        """Shape of its result."""
        return self.op.of(plane)

    def forward(
        self, m: Meter, x: Block, plane: Plane, n: int, channels: int = 0
    ) -> tuple[Block, Plane]:
        """Use up ``x``; ``channels`` of the result."""
        op, out = self.op, self.op.of(plane)
        attends = op.kind == "attention"
        count = n * channels * volume(out[1:])
        made = attend(m, plane, n, op.groups) if attends else m.floats(count)
        if op.kind == "conv":
            weight = (channels, *op.weight[1:])
            y = (n, channels, *out[1:])
            m.convolve(Convolution((n, *plane), weight, y, op.bias, op.stride))
        m.drop(x)
        return made, out

    def backward(
        self,
        m: Meter,
        plane: Plane,
        n: int,
        g: Part,
        gradients: list[Block],
        *,
        need_input: bool,
        first: bool | None,
    ) -> Part | None:
        """Leave ``g`` held; of a first chunk, parameters' gradients stay; None: they are not asked for."""
        del g
        op, out = self.op, self.op.of(plane)
        if op.kind == "attention":
            return Part(attend_back(m, plane, n, op.groups)) if need_input else None
        if op.kind == "voting":
            shares = m.floats(n * volume(out))
            made = m.floats(n * volume(plane))
            m.drop(shares)
            return Part(made)
        sizes = [] if first is None else [volume(op.weight)] + [op.c_out] * op.bias
        if op.kind == "conv":
            g_x = m.floats(n * volume(plane)) if need_input else None
            own = [m.floats(size) for size in sizes]
            wanted = (need_input, first is not None)
            call = Convolution((n, *plane), op.weight, (n, *out), op.bias, op.stride, wanted=wanted)
            m.convolve(call)
            self._keep(m, own, gradients, first=first)
        else:
            for size in sizes:
                self._keep(m, [m.floats(size)], gradients, first=first)
            g_x = m.floats(n * volume(plane)) if need_input else None
        return None if g_x is None else Part(g_x)

    def _keep(
        self, m: Meter, own: list[Block], gradients: list[Block], *, first: bool | None
    ) -> None:
        """Gradients of the first chunk stay; those of others are added to them."""
        if first:
            gradients += own
        else:
            m.drop(*own)


Stage = Pools | Dropout | Operator
