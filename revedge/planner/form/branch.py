"""Bytes of a branch's forward pass, under every strategy. Mirrors `revedge.engine.strategy`; backward: replay.py.

What unit i keeps between forward and backward, beside two vectors of C numbers for its norm:

    store        4 T B C H W [its input] + 4 T B C H W [its spikes]; the first of a feed: the spikes
    keep-conv    4 T B C H W, the convolution output before it; the first: nothing
    keep-spikes  ceil(T B C H W / 8); the first of a feed or coupling: nothing
    reverse      nothing; in a feed as keep-spikes; the first of a residual branch ceil(T B C H W / 8)

A branch that ends in a norm keeps the convolution output before it under store and keep-conv.
"""

from dataclasses import dataclass, field

from revedge.planner.form.head import Stats, affine, fire, packs, take_stats
from revedge.planner.form.meter import Block
from revedge.planner.form.output import Output, add_slabs, fire_slabs
from revedge.planner.form.shape import Branch, NotCoveredError, Plane, Unit, volume
from revedge.planner.form.tail import Context, Signal, Sums

STRATEGIES = frozenset({"store", "keep-conv", "keep-spikes", "reverse", "invert"})
KEEPS_OUTPUT = ("store", "keep-conv", "invert")


def keeps(c: Context, place: str, unit: Unit, index: int) -> tuple[bool, bool]:
    """Whether ``unit``, the ``index``-th of a branch, keeps its input, and what its neuron gave out."""
    if not c.keep:
        return False, False
    first = index == 0
    if c.strategy == "store":
        return not first or place != "feed", bool(unit.neuron)
    if c.strategy == "invert" and unit.neuron == "reversible":
        return False, True
    if first and place == "residual" and not unit.neuron:
        return True, False
    if c.strategy in ("keep-conv", "invert"):
        return not first, False
    if first:
        return False, bool(unit.neuron) and place == "residual"
    return False, bool(unit.neuron) and (c.strategy == "keep-spikes" or place == "feed")


@dataclass(slots=True)
class _UnitTape:
    stats: Stats = ()
    pre: Block | None = None
    signal: Signal | None = None


@dataclass(slots=True)
class Tape:
    """What a branch keeps, and the shape of what goes into each unit."""

    planes: list[Plane]
    units: list[_UnitTape] = field(default_factory=list)
    out: Block | None = None
    stats: Stats = ()

    @property
    def keeps_input(self) -> bool:
        """Whether the branch's own input is on the tape."""
        return bool(self.units) and self.units[0].pre is not None


def branch_forward(
    c: Context,
    branch: Branch,
    x: Block | Signal,
    plane: Plane,
    place: str,
    *,
    expanded: bool = False,
) -> tuple[Output, Tape]:
    """Run ``x`` through the units; takes over who held the block, not the signal.

    Raises:
        NotCoveredError: a frame is pooled to nothing.
    """
    m, units = c.meter, branch.units
    planes = [plane]
    for unit in units:
        planes.append(unit.of(planes[-1]))
        if min(planes[-1]) < 1:
            raise NotCoveredError("a frame that is pooled to nothing")
    tape = Tape(planes)
    if isinstance(x, Signal):
        tape.units.append(_UnitTape(signal=_held(c, x) if c.keep else None))
        y = Output(c, units[0], _held(c, x), planes[1])
    else:
        y = Output.of(c, x, plane)
        y.expanded = expanded
    sums, kept = None, _UnitTape()
    for index in range(int(isinstance(x, Signal)), len(units)):
        with m.site("unit", index):
            unit = units[index]
            if not c.keep:
                m.drop(*kept.stats)
            kept = _UnitTape()
            pre, spikes = keeps(c, place, unit, index)
            if y.sliced and unit.spikes and not pre and not (spikes and c.strategy == "store"):
                kept.stats, signal = fire_slabs(c, unit, y, None)
            else:
                _drop(c, sums)
                sums = Sums(m) if unit.norm and c.keep else None
                whole = y.whole(sums)
                kept.stats = take_stats(c, y.plane[0]) if unit.norm else ()
                signal = fire(c, unit, y.plane, whole, pack=packs(c, unit))
                kept.pre = m.hold(whole) if pre else None
            kept.signal = _held(c, signal) if spikes else None
            if c.keep:
                tape.units.append(kept)
            y.drop()
            y = Output(c, unit, signal, planes[index + 1])
    if not c.keep:
        m.drop(*kept.stats)
    _drop(c, sums)
    return y, tape


def _held(c: Context, signal: Signal) -> Signal:
    c.meter.hold(signal.block)
    return signal


def _drop(c: Context, sums: Sums | None) -> None:
    if sums is not None:
        c.meter.drop(sums.block)


def join(c: Context, branch: Branch, x: Block | None, y: Output, tape: Tape) -> Block:
    """Add what the branch gives out to ``x``, which it takes over."""
    m = c.meter
    if not branch.norm:
        whole = y.whole()
        return m.hold(whole) if x is None else x
    keeps_output = c.keep and c.strategy in KEEPS_OUTPUT
    if y.sliced and not branch.pools and not keeps_output:
        out, tape.stats = add_slabs(c, x, y, None)
        return out
    sums = Sums(m) if c.keep else None
    whole = y.whole(sums)
    tape.stats = take_stats(c, y.plane[0])
    tape.out = m.hold(whole) if keeps_output else None
    out = add_rounded(c, branch, x, y.plane)
    _drop(c, sums)
    return out


def add_rounded(c: Context, branch: Branch, x: Block | None, plane: Plane) -> Block:
    """Normalize a whole output of ``plane`` and add it, rounded, to ``x``, which it takes over; None: to nothing."""
    m = c.meter
    vectors = affine(m, plane[0], 3)
    pooled: Block | None = None
    for place, pool in enumerate(branch.pools):
        before = c.whole(plane) if place == 0 else pooled
        plane = pool.of(plane)
        if pool.kind == "max" and place == 0:
            m.note(4 * c.planes * volume(plane), 8 * c.planes * volume(plane))  # and indices
        pooled = c.whole(plane)
        m.drop(before)
    if branch.pools:
        ones = [m.floats(plane[0]), m.floats(plane[0])]
        m.drop(*vectors[:2])
        vectors = [*ones, vectors[2]]
    out = c.whole(plane) if x is None else x
    m.drop(pooled, *vectors)
    return out
