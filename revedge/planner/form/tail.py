"""Bytes of a unit's tail: pools, dropout and operator, chunk by chunk. Mirrors `revedge.engine.tail` and `vjp`.

n planes (a sample at a time step) of C channels, H x W pixels; K output channels of H' x W'; 4 bytes a value.

    forward, chunk of n          4 n C H W [spikes] + 4 n K H' W' [result] + workspace
    further chunks               + 4 T B K H' W', which the first has made
    backward, chunk of n         4 n C H W [spikes] + 4 n C H W [gradient] + 4 K C k k + workspace
    where shapes differ          + 4 T B C H W, which the first chunk has made
"""

import math
from dataclasses import dataclass

from revedge.planner.form.meter import Block, Meter
from revedge.planner.form.shape import Plane, Unit, volume
from revedge.planner.form.stages import Dropout, Operator, Part, Pools, Stage

CHUNK_BYTES = 2 * 2**20  # as in revedge.engine.signal
_CHANNEL_BLOCK = 16
LANES = 16  # float64 sums per channel, of values and of their squares


@dataclass(slots=True)
class Context:
    """What the formulas are evaluated for."""

    meter: Meter
    timesteps: int
    batch: int
    strategy: str
    slab_bytes: int | None
    span_count: int | None
    membrane_count: int | None
    chunk_bytes: int | None
    keep: bool  # a tape is left; statistics are those of the batch
    updates: bool  # parameters are updated, and gradients forgotten, in the backward pass

    @property
    def planes(self) -> int:
        """T B."""
        return self.timesteps * self.batch

    def whole(self, plane: Plane) -> Block:
        """Count a float32 tensor of all planes."""
        return self.meter.floats(self.planes * volume(plane))

    def settle(self, gradients: list[Block]) -> None:
        """The backward of a module is done: its gradients stay, or are used up."""
        if self.updates:
            self.meter.drop(*gradients)
        gradients.clear()


@dataclass(slots=True)
class Signal:
    """What a neuron gave out: ``plane`` is the shape of what is read, ``window`` says that it is pooled."""

    plane: Plane
    block: Block
    dense: bool
    window: bool = False
    plane_bits: int = 0  # that stand for one plane; 0: as many as it has values


class Sums:
    """Sums of a tensor's channels, taken while it is computed: 256 bytes a channel."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self.block = meter, None

    block: Block | None

    def add(self, channels: int) -> None:
        """Make room at the first chunk."""
        if self.block is None:
            self.block = self._meter.new(2 * channels * LANES * 8)


def chunks(c: Context, signal: Signal, *, whole: bool) -> list[int]:
    """Return the sizes of the chunks: the first, one for all up to the last, the last."""
    if whole:
        return [c.planes]
    count = planes_per_chunk(c, signal.plane, signal.plane_bits or volume(signal.plane))
    full, rest = divmod(c.planes, count)
    return [count] * min(full, 2 if rest else 3) + [rest] * bool(rest)


def planes_per_chunk(c: Context, plane: Plane, plane_bits: int) -> int:
    """How many planes of ``plane_bits`` bits each a chunk has."""
    size = max(1, volume(plane))
    aligned = 8 // math.gcd(8, max(1, plane_bits))
    channels = max(1, plane[0])
    plane_bytes = 4 * size // channels * max(_CHANNEL_BLOCK, channels)
    fitting = (CHUNK_BYTES if c.chunk_bytes is None else c.chunk_bytes) // plane_bytes
    return max(1, fitting // aligned) * aligned


def tail_forward(
    c: Context,
    unit: Unit,
    signal: Signal,
    cuts: list[int] | None = None,
    sums: Sums | None = None,
) -> Block:
    """Operate on ``signal``; ``cuts`` are output channels that are computed by an operation of their own each."""
    m, stages = c.meter, _stages(c, unit, signal)
    if not stages:
        x = m.hold(signal.block) if signal.dense else c.whole(signal.plane)
        if sums is not None:
            sums.add(signal.plane[0])
        return x
    result = _shape(stages, signal.plane)
    sizes = chunks(c, signal, whole=_is_whole(c, unit))
    channels = [result[0]] if cuts is None else cuts
    out: Block | None = None
    for n in sizes:
        x, plane = _read(c, signal, n)
        for stage in stages[:-1]:
            x, plane = stage.forward(m, x, plane, n)
        for count in channels:
            y, _ = stages[-1].forward(m, m.hold(x), plane, n, count)
            if len(sizes) == len(channels) == 1:
                if sums is not None:
                    sums.add(count)
                m.drop(x)
                return y
            if out is None:
                out = m.floats(c.planes * sum(channels) * volume(result[1:]))
            m.drop(y)
        if sums is not None:
            sums.add(result[0])
        m.drop(x)
    assert out is not None
    return out


def tail_backward(
    c: Context,
    unit: Unit,
    signal: Signal,
    g: Block,
    gradients: list[Block],
    *,
    need_input: bool,
    first: bool | None = True,
) -> Block | None:
    """Return the gradient of ``signal``, written over ``g`` where it has its shape; ``g`` stays held.

    ``first``: the parameters' gradients are made here; False: added to; None: not asked for.
    """
    m, stages = c.meter, _stages(c, unit, signal)
    if not stages:
        return m.hold(g)
    result = _shape(stages, signal.plane)
    sizes = chunks(c, signal, whole=_is_whole(c, unit))
    g_in = m.hold(g) if result == signal.plane else None
    for place, n in enumerate(reversed(sizes)):
        made = first and place == 0
        part = _chunk_backward(
            c, stages, signal, n, m.hold(g), gradients, need_input=need_input, first=made
        )
        if part is None:
            continue
        if len(sizes) == 1:
            m.drop(g_in)
            return _contiguous(m, part, n * volume(signal.plane))
        if g_in is None:
            g_in = c.whole(signal.plane)
        m.drop(part.block)
    if not need_input:
        m.drop(g_in)
        return None
    return g_in


def _contiguous(m: Meter, part: Part, count: int) -> Block:
    if not part.repeated:
        return part.block
    copy = m.floats(count)
    m.drop(part.block)
    return copy


def _chunk_backward(
    c: Context,
    stages: list[Stage],
    signal: Signal,
    n: int,
    g: Block,
    gradients: list[Block],
    *,
    need_input: bool,
    first: bool | None,
) -> Part | None:
    m = c.meter
    inputs = [_read(c, signal, n)]
    for stage in stages[:-1]:
        x, plane = inputs[-1]
        inputs.append(stage.forward(m, m.hold(x), plane, n))
    current: Part | None = Part(g)
    for stage in reversed(stages):
        x, plane = inputs.pop()
        if current is not None:
            before = current
            needed = need_input or bool(inputs)
            current = stage.backward(m, plane, n, before, gradients, need_input=needed, first=first)
            m.drop(before.block)
        m.drop(x)
    return current


def _read(c: Context, signal: Signal, n: int) -> tuple[Block, Plane]:
    m = c.meter
    if signal.dense:
        return m.hold(signal.block), signal.plane
    return m.floats(n * volume(signal.plane)), signal.plane


def _is_whole(c: Context, unit: Unit) -> bool:
    return unit.dropout and c.keep


def _stages(c: Context, unit: Unit, signal: Signal) -> list[Stage]:
    found: list[Stage] = []
    if signal.window:
        found += [Pools((pool,)) for pool in unit.pools[1:]]
    elif unit.pools:
        found.append(Pools(unit.pools))
    if unit.dropout and c.keep:
        found.append(Dropout(c.timesteps))
    if unit.op is not None:
        found.append(Operator(unit.op))
    return found


def _shape(stages: list[Stage], plane: Plane) -> Plane:
    for stage in stages:
        plane = stage.of(plane)
    return plane
