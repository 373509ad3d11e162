"""Bytes of a unit's head: statistics, norm, neuron and a pool taken along. Mirrors `revedge.engine.fire` and `pooled`.

forward    4 T B C H W [y, which is there] + ceil(T B C H W / 8) [bits; of windows behind a max pool]
           + 3 vectors of C numbers, 4 while they are made; 2 stay: mean and variance
backward   nothing, written over the gradient; behind a pool 4 T B C H W, unless y itself may be overwritten
"""

from revedge.planner.form.meter import Block, Meter
from revedge.planner.form.shape import NotCoveredError, Plane, Pool, Unit, volume
from revedge.planner.form.tail import Context, Signal

_LEAST_PLANE, _MOST_SCRATCH_BYTES = 64, 2**20  # as in revedge.engine.pooled
_PIECE = 1 << 15  # of a sum over the parts of a leak's gradient
Stats = tuple[Block, ...]


def affine(m: Meter, channels: int, left: int) -> list[Block]:
    """Make scale, shift and inverse deviation; ``left`` of the three stay."""
    size = 4 * channels
    m.note(size, size, size, size)
    return [m.floats(channels) for _ in range(left)]


def take_stats(c: Context, channels: int) -> Stats:
    """Mean and variance of the batch; nothing new where they are frozen."""
    if not c.keep:
        return ()
    stats = (c.meter.floats(channels), c.meter.floats(channels))
    c.meter.note(4 * channels)  # what moves the running variance
    return stats


def window_of(c: Context, unit: Unit, plane: Plane) -> Pool | None:
    """The pool that norm and neuron take along; ``plane`` is that of what the unit normalizes."""
    if (unit.norm and not c.keep) or not unit.spikes or len(plane) != 3:
        return None
    if plane[1] * plane[2] < _LEAST_PLANE:
        return None
    if 4 * plane[1] * plane[2] * (c.timesteps + 2) > _MOST_SCRATCH_BYTES:
        return None
    return unit.pools[0] if unit.pools and unit.pools[0].is_window else None


def packs(c: Context, unit: Unit) -> bool:
    """Whether spikes are made at one bit each."""
    return unit.spikes and not (c.keep and c.strategy == "store")


def fire(c: Context, unit: Unit, plane: Plane, y: Block, *, pack: bool) -> Signal:
    """What the neuron answers to ``y``, which stays; without a neuron it is ``y``."""
    m = c.meter
    if not unit.neuron:
        return Signal(plane, m.hold(y), dense=True)
    if unit.neuron == "reversible":
        return _reversible(c, unit, plane)
    window = window_of(c, unit, plane)
    if window is None:
        vectors = affine(m, plane[0], 3) if unit.norm else []
        block = _bits(c, plane) if pack else c.whole(plane)
        m.drop(*vectors)
        return Signal(plane, block, dense=not pack)
    vectors = affine(m, plane[0], 2) if unit.norm else []
    pooled = window.of(plane)
    spikes = plane if window.kind == "average" else pooled
    bits = _bits(c, spikes)
    if not pack:
        dense = c.whole(pooled)
        m.drop(bits, *vectors)
        return Signal(pooled, dense, dense=True, window=True)
    m.drop(*vectors)
    return Signal(pooled, bits, dense=False, window=True, plane_bits=volume(spikes))


def _reversible(c: Context, unit: Unit, plane: Plane) -> Signal:
    """Its input on a grid, its output, and the last membranes for a moment."""
    m, given = c.meter, None
    if plane[0] % 2:
        raise NotCoveredError("channels that two groups do not split")
    if unit.norm:
        vectors = affine(m, plane[0], 3)
        given = c.whole(plane)
        m.drop(*vectors)
    out = c.whole(plane)
    m.note(4 * c.batch * volume(plane))
    m.drop(given)
    return Signal(plane, out, dense=True)


def reversible_backward(c: Context, unit: Unit, plane: Plane, gradients: list[Block]) -> None:
    """From the output alone: the input is made again, the gradient is written over that of the output."""
    m, channels = c.meter, plane[0]
    x = c.whole(plane)
    if unit.norm:
        inverse = m.floats(channels)
        squared = m.floats(channels)
        inverse_deviation = affine(m, channels, 1)
        weight = m.floats(channels)
        m.drop(squared, *inverse_deviation)
        gradients += [m.floats(channels), m.floats(channels)]
        m.drop(inverse, weight)
    m.drop(x)


def fire_backward(
    c: Context,
    unit: Unit,
    plane: Plane,
    y: Block,
    g: Block,
    gradients: list[Block],
    *,
    y_is_free: bool,
) -> Block:
    """Use up ``g``, the gradient of what the neuron gave out; return that of ``y``."""
    m, window = c.meter, window_of(c, unit, plane)
    vectors = affine(m, plane[0], 1) if unit.norm else []
    made = g
    if window is not None:
        plane_bytes = 4 * plane[1] * plane[2]
        fits = plane_bytes * c.timesteps * (c.batch + 1) <= _MOST_SCRATCH_BYTES
        made = m.hold(y) if y_is_free and fits else c.whole(plane)
    if unit.norm:
        gradients += [m.floats(plane[0]), m.floats(plane[0])]
    leak = m.floats(c.batch * volume(plane)) if unit.neuron == "leak" else None
    if leak is not None:
        gradients.append(leak_gradient(m, c.batch * volume(plane)))
    m.drop(leak, *vectors)
    if made is not g:
        m.drop(g)
    return made


def leak_gradient(m: Meter, count: int) -> Block:
    """The gradient of a layer's leak, summed from ``count`` parts, a piece at a time."""
    leak = m.floats(1)
    pieces = [m.new(8) for _ in range(-(-count // _PIECE))]
    m.note(8 * len(pieces), 8)
    m.note(8, 4)
    total = m.floats(1)
    m.note(4, 4, 4)
    made = m.floats(1)
    m.drop(leak, total, *pieces)
    return made


def norm_backward(c: Context, channels: int, gradients: list[Block]) -> None:
    """A norm alone, written over the gradient of its result."""
    inverse = affine(c.meter, channels, 1)
    gradients += [c.meter.floats(channels), c.meter.floats(channels)]
    c.meter.drop(*inverse)


def _bits(c: Context, plane: Plane) -> Block:
    return c.meter.new(-(-c.planes * volume(plane) // 8))
