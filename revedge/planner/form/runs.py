"""Bytes of a run, forward and backward. Mirrors `revedge.engine.feed`, `residual` and `coupling`.

Between forward and backward a run keeps what its branches keep, and

    feed        its input, which is the output of the run before
    residual    its output; under store also each block's input, 4 T B C H W
    coupling    its output; under store also each half's input, 2 T B C H W

Blocks that are equal are followed once: what each adds, and what it takes at most, is the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

from revedge.planner.form.branch import Tape, branch_forward, join
from revedge.planner.form.meter import Block
from revedge.planner.form.output import Output
from revedge.planner.form.replay import Replay
from revedge.planner.form.replay_of import replay_of
from revedge.planner.form.shape import Branch, Plane, Run, volume
from revedge.planner.form.tail import CHUNK_BYTES, Context


@dataclass(slots=True)
class Stream:
    """A tensor between runs; ``expanded``: one step stands for all."""

    block: Block
    plane: Plane
    expanded: bool = False


def feed_forward(c: Context, run: Run, x: Stream) -> tuple[Stream, list[Tape]]:
    """Take over who held ``x``."""
    m, tapes = c.meter, list[Tape]()
    out: Block | None = None
    for place, branch in enumerate(run.branches):
        if place + 1 < len(run.branches):
            m.hold(x.block)
        y, tape = branch_forward(c, branch, x.block, x.plane, "feed", expanded=x.expanded)
        out = join(c, branch, out, y, tape)
        y.drop()
        tapes.append(tape)
    assert out is not None
    return Stream(out, run.branches[0].of(x.plane)), tapes


def feed_backward(
    c: Context, run: Run, x: Output | None, tapes: list[Tape], g: Block, *, free: bool, need: bool
) -> Block | None:
    """Use up ``g``; return the gradient of ``x``."""
    m, g_x = c.meter, None
    for place, branch in enumerate(run.branches):
        tape, gradients = tapes[place], list[Block]()
        last = place + 1 == len(run.branches)
        given = g if last else m.hold(g)
        own = x
        if x is not None and x.free and not last:  # the others need it, too
            own = Output.of(c, x.whole(), x.plane)
        replay = Replay(c, branch, tape, own)
        own_g = replay.undo(given, gradients, free=last and free)
        part = replay.backward(own_g, gradients, need_input=need)
        if g_x is None:
            g_x = part
        else:
            m.drop(part)
        replay.close()
    return g_x


def residual_forward(c: Context, run: Run, x: Stream) -> tuple[Stream, list[Tape]]:
    """Take over who held ``x``, and write over it."""
    m, tapes = c.meter, list[Tape]()
    stream = x.block
    if x.expanded:
        stream = c.whole(x.plane)
        m.drop(x.block)

    def block(branch: Branch) -> None:
        nonlocal stream
        y, tape = branch_forward(c, branch, m.hold(stream), x.plane, "residual")
        base = stream
        if tape.keeps_input:
            base = c.whole(x.plane)
            m.drop(stream)
        stream = join(c, branch, base, y, tape)
        y.drop()
        tapes.append(tape)

    _in_turn(c, run, block)
    return Stream(stream, x.plane), tapes


def residual_backward(c: Context, run: Run, out: Stream, tapes: list[Tape], g: Block) -> Block:
    """Use up ``out`` and ``g``."""
    m, stream = c.meter, out.block

    def block(branch: Branch) -> None:
        nonlocal stream
        gradients = list[Block]()
        tape = tapes.pop()
        replay = replay_of(c, branch, tape, None)
        last = replay.undo(m.hold(g), gradients, free=False)
        if tape.keeps_input:
            m.drop(stream)
            pre = tape.units[0].pre
            assert pre is not None
            stream = m.hold(pre)
        replay.x = Output.of(c, stream, out.plane)
        m.drop(replay.backward(last, gradients, need_input=True))
        replay.close()

    _backwards(c, run, block)
    m.drop(stream)
    return g


def coupling_forward(c: Context, run: Run, x: Stream) -> tuple[Stream, list[Tape]]:
    """Take over who held ``x``."""
    m, tapes, half = c.meter, list[Tape](), _half(x.plane)
    halves = _copies(c, x)
    index = 0

    def block(branch: Branch) -> None:
        nonlocal index
        to, read = index % 2, 1 - index % 2
        y, tape = branch_forward(c, branch, m.hold(halves[read]), half, "coupling")
        base = halves[to]
        if tape.keeps_input:
            base = c.whole(half)
            m.drop(halves[to])
        halves[to] = join(c, branch, base, y, tape)
        y.drop()
        tapes.append(tape)
        index += 1

    _in_turn(c, run, block)
    out = _merge(c, x.plane, halves)
    return Stream(out, x.plane), tapes


def coupling_backward(c: Context, run: Run, out: Stream, tapes: list[Tape], g: Block) -> Block:
    """Use up ``out`` and ``g``."""
    m, half = c.meter, _half(out.plane)
    halves, g_halves = _split(c, out), _split(c, Stream(g, out.plane))
    index = len(run.branches) * run.count

    def block(branch: Branch) -> None:
        nonlocal index
        index -= 1
        read = 1 - index % 2
        gradients = list[Block]()
        replay = replay_of(c, branch, tapes.pop(), Output.of(c, halves[read], half))
        last = replay.undo(m.hold(g_halves[1 - read]), gradients, free=False)
        m.drop(replay.backward(last, gradients, need_input=True))
        replay.close()

    _backwards(c, run, block)
    m.drop(*halves)
    return _merge(c, out.plane, g_halves)


def _half(plane: Plane) -> Plane:
    return (plane[0] // 2, *plane[1:])


def _copies(c: Context, x: Stream) -> list[Block]:
    """Both halves in memory of their own."""
    halves = [c.whole(_half(x.plane)), c.whole(_half(x.plane))]
    c.meter.drop(x.block)
    return halves


def _split(c: Context, x: Stream) -> list[Block]:
    """Both halves, in the memory of ``x``."""
    block = x.block
    if x.expanded:
        block = c.whole(x.plane)
        c.meter.drop(x.block)
    _swap(c, x.plane)
    return [block, c.meter.hold(block)]


def _merge(c: Context, plane: Plane, halves: list[Block]) -> Block:
    """The stream of its halves, in their memory if that is one."""
    first, second = halves
    if first is second:
        _swap(c, plane)
        c.meter.drop(second)
        return first
    made = c.whole(plane)
    c.meter.drop(*halves)
    return made


def _swap(c: Context, plane: Plane) -> None:
    """Halves change places within the stream, a stripe at a time."""
    stripes = -(-4 * c.planes * volume(plane) // CHUNK_BYTES)
    width = max(1, -(-volume(_half(plane)) // max(1, stripes)))
    c.meter.note(4 * 2 * c.planes * width)


def _in_turn(c: Context, run: Run, step: Callable[[Branch], None]) -> None:
    """The first block, which finds nothing of another, then the others, which are equal."""

    def block() -> None:
        for place, branch in enumerate(run.branches):
            with m.site("branch", place):
                step(branch)

    m = c.meter
    with m.site("first block"):
        block()
    with m.site("other blocks"):
        m.times(run.count - 1, block)


def _backwards(c: Context, run: Run, step: Callable[[Branch], None]) -> None:
    def block() -> None:
        for place, branch in reversed(list(enumerate(run.branches))):
            with m.site("branch", place):
                step(branch)

    m = c.meter
    # The tape of the first block is one of its own; that of the others stands for all of them.
    with m.site("other blocks"):
        m.times(run.count - 1, block)
    with m.site("first block"):
        block()
