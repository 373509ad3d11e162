"""Bytes of what a tail gives out, whole or in slabs of channels. Mirrors `revedge.engine.output` and `slab`.

a slab of c channels          4 T B c H W + what its convolution takes, instead of 4 T B C H W
fired slab by slab            + ceil(T B C H W / 8) bits; the slab before stands beside the next
backward, slab by slab        + nothing: the gradient of the whole is there
"""

from collections.abc import Iterator

from revedge.planner.form.head import (
    Stats,
    affine,
    leak_gradient,
    take_stats,
    window_of,
)
from revedge.planner.form.meter import Block
from revedge.planner.form.shape import Plane, Unit, volume
from revedge.planner.form.tail import Context, Signal, Sums, tail_forward

_LEAST_CHANNELS, _EVEN_CHANNELS = 8, 16  # as in revedge.engine.output


class Output:
    """The output of the tail of ``unit`` for ``signal``, which it holds; or a tensor that is there."""

    def __init__(self, c: Context, unit: Unit, signal: Signal, plane: Plane) -> None:
        self._c, self._unit, self._signal, self.plane = c, unit, signal, plane
        self.free = self.expanded = False
        self._block: Block | None = None
        self._held = [signal.block]
        self.cuts = [plane[0]]
        if c.slab_bytes is not None and unit.op is not None and unit.op.is_matrix:
            self.cuts = _cut(c, plane)

    @classmethod
    def of(cls, c: Context, block: Block, plane: Plane, *, free: bool = False) -> "Output":
        """Return an output that is there already; takes over who held ``block``."""
        output = cls.__new__(cls)
        output._c, output.plane, output.free, output.expanded = c, plane, free, False
        output._block, output._held, output.cuts = block, [], [plane[0]]
        return output

    @property
    def there(self) -> bool:
        """Whether it stands in memory."""
        return self._block is not None

    @property
    def sliced(self) -> bool:
        """Whether `slabs` yields more than one."""
        return self._block is None and len(self.cuts) > 1

    def slabs(self) -> Iterator[tuple[int, Block]]:
        """Yield channels and the slab, which the caller has to drop; of a sliced output."""
        for channels in self.cuts:
            yield channels, tail_forward(self._c, self._unit, self._signal, [channels])

    def whole(self, sums: Sums | None = None) -> Block:
        """Compute it, once; it goes with `drop`."""
        if self._block is None and len(self.cuts) == 1:
            self._block = tail_forward(self._c, self._unit, self._signal, sums=sums)
        elif self._block is None:
            self._block = tail_forward(self._c, self._unit, self._signal, self.cuts)
            if sums is not None:
                sums.add(self.plane[0])
        elif sums is not None:
            sums.add(self.plane[0])
        return self._block

    def drop(self) -> None:
        """Nobody needs it any more."""
        self._c.meter.drop(self._block, *self._held)
        self._block, self._held = None, []


class Rounded(Output):
    """``round(norm(y))``, the output of a branch with a trailing norm, in the slabs of ``y``."""

    def __init__(self, y: Output) -> None:
        self._y, self._c, self.plane = y, y._c, y.plane
        self.free = self.expanded = False
        self._block, self._held, self.cuts = None, [], y.cuts

    def slabs(self) -> Iterator[tuple[int, Block]]:
        """See `Output`."""
        for channels, slab in self._y.slabs():
            affine(self._c.meter, channels, 0)
            yield channels, self._c.meter.hold(slab)
            self._c.meter.drop(slab)

    def whole(self, sums: Sums | None = None) -> Block:
        """See `Output`."""
        m = self._c.meter
        if self._block is None and not self._y.sliced:
            self._block = m.hold(self._y.whole())
            affine(m, self.plane[0], 0)
        elif self._block is None:
            for channels, slab in self._y.slabs():
                if self._block is None:
                    self._block = self._c.whole(self.plane)
                affine(m, channels, 0)
                m.drop(slab)
        assert self._block is not None
        if sums is not None:
            sums.add(self.plane[0])
        return self._block

    def drop(self) -> None:
        """See `Output`."""
        self._c.meter.drop(self._block)
        self._block = None
        self._y.drop()


def _cut(c: Context, plane: Plane) -> list[int]:
    """Channels of the slabs."""
    channels = plane[0]
    channel_bytes = max(1, 4 * c.planes * volume(plane[1:]))
    assert c.slab_bytes is not None
    count = max(_LEAST_CHANNELS, c.slab_bytes // channel_bytes)
    if count < channels and count > _EVEN_CHANNELS:
        count -= count % _EVEN_CHANNELS
    full, rest = divmod(channels, count)
    return [count] * full + [rest] * bool(rest)


def fire_slabs(c: Context, unit: Unit, y: Output, stats: Stats | None) -> tuple[Stats, Signal]:
    """Statistics, unless they are given, and bits, slab by slab."""
    m, window = c.meter, window_of(c, unit, y.plane)
    pooled = y.plane if window is None else window.of(y.plane)
    one_by_one = window is None or window.kind == "average"
    spikes = y.plane if one_by_one else pooled
    bits: Block | None = None
    # What a slab has left stands for one slab more.
    parts, before = list[Block](), list[Block]()
    for channels, slab in y.slabs():
        if bits is None:
            bits = m.new(-(-c.planes * volume(spikes) // 8))
        if not unit.norm:
            vectors = [m.floats(channels), m.floats(channels)]
        else:
            if stats is None and c.keep:
                parts += [m.floats(channels), m.floats(channels)]
            vectors = affine(m, channels, 3)
        m.drop(*before, slab)
        before = vectors
    if stats is None and unit.norm:
        stats = _gathered(c, y.plane[0])
    m.drop(*parts, *before)
    assert bits is not None
    signal = Signal(pooled, bits, dense=False, window=window is not None, plane_bits=volume(spikes))
    return stats or (), signal


def _gathered(c: Context, channels: int) -> Stats:
    """Of several slabs, in one; those that are frozen are put together, too."""
    if c.keep:
        return take_stats(c, channels)
    return (c.meter.floats(channels), c.meter.floats(channels))


def fire_slabs_backward(
    c: Context, unit: Unit, y: Output, g: Block, gradients: list[Block]
) -> Block:
    """As `head.fire_backward`."""
    m, window = c.meter, window_of(c, unit, y.plane)
    made = g if window is None else c.whole(y.plane)
    one = c.batch * volume(y.plane[1:])
    leaks = m.floats(one * y.plane[0]) if unit.neuron == "leak" else None
    parts, before = list[Block](), list[Block]()
    for channels, slab in y.slabs():
        if unit.norm:
            m.drop(*before[:1])
            vectors = affine(m, channels, 2)
            m.drop(*before[1:2])
            parts += [m.floats(channels), m.floats(channels)]
            leak = [m.floats(one * channels)] if leaks is not None else []
            m.drop(*before[2:], slab)
            before = [*vectors, *leak]
            continue
        own = (
            None
            if window is not None or c.planes == 1
            else m.floats(c.planes * one // c.batch * channels)
        )
        leak = [m.floats(one * channels)] if leaks is not None else []
        m.drop(own, *before, slab)
        before = leak
    if unit.norm:
        gradients += [m.floats(y.plane[0]), m.floats(y.plane[0])]
    m.drop(*parts)
    if leaks is not None:
        gradients.append(leak_gradient(m, one * y.plane[0]))
    m.drop(leaks, *before)
    if made is not g:
        m.drop(g)
    return made


def add_slabs(c: Context, x: Block | None, y: Output, stats: Stats | None) -> tuple[Block, Stats]:
    """Add the rounded slabs to ``x``, or make room for them; and statistics, unless they are given."""
    m, parts = c.meter, list[Block]()
    for channels, slab in y.slabs():
        if x is None:
            x = c.whole(y.plane)
        if stats is None and c.keep:
            parts += [m.floats(channels), m.floats(channels)]
        affine(m, channels, 0)
        m.drop(slab)
    if stats is None:
        stats = _gathered(c, y.plane[0])
    m.drop(*parts)
    assert x is not None
    return x, stats


def undo_slabs(c: Context, y: Output, gradients: list[Block]) -> None:
    """Take slabs off the stream, and turn the gradient of the sum into that of ``y``, both in place."""
    m = c.meter
    parts, before = list[Block](), list[Block]()
    for channels, slab in y.slabs():
        affine(m, channels, 0)
        m.drop(*before[:1])
        vectors = affine(m, channels, 2)
        m.drop(*before[1:])
        before = vectors
        parts += [m.floats(channels), m.floats(channels)]
        m.drop(slab)
    gradients += [m.floats(y.plane[0]), m.floats(y.plane[0])]
    m.drop(*parts, *before)
