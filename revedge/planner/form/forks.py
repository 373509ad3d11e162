"""Bytes of a run of forks, forward and backward. Mirrors `revedge.engine.fork`.

Between forward and backward it keeps its input, what its arms keep, and per fork ceil(T B C H W / 8) [the spikes of
its head]; under store these as float32, and its stream, 4 T B C H W each.
"""

from dataclasses import dataclass, field

from revedge.planner.form.branch import KEEPS_OUTPUT, Tape, branch_forward, join
from revedge.planner.form.head import (
    Stats,
    fire,
    fire_backward,
    packs,
    reversible_backward,
    take_stats,
)
from revedge.planner.form.meter import Block
from revedge.planner.form.output import Output
from revedge.planner.form.replay import Replay
from revedge.planner.form.runs import Stream
from revedge.planner.form.shape import Fork, Plane, Run
from revedge.planner.form.tail import Context, Signal


@dataclass(slots=True)
class _ForkTape:
    plane: Plane
    stats: Stats
    signal: Signal
    stream: Block | None = None
    arms: list[Tape] = field(default_factory=list)


def forks_forward(c: Context, run: Run, x: Stream) -> tuple[Stream, list[_ForkTape]]:
    """Take over who held ``x``."""
    m, tapes, plane = c.meter, list[_ForkTape](), x.plane
    stream = _readable(c, run.forks[0], x)
    y: Output | None = None
    before: _ForkTape | None = None
    for index, fork in enumerate(run.forks):
        stats: Stats = ()
        if fork.head is None:
            signal = Signal(plane, m.hold(stream), dense=True)
        else:
            stats = take_stats(c, plane[0]) if fork.head.norm else ()
            pack = packs(c, fork.head)
            signal = fire(c, fork.head, plane, stream, pack=pack)
        kept = _ForkTape(plane, stats, signal)
        if before is not None and not c.keep:
            m.drop(before.signal.block)
        if index and _keeps_stream(c, run.forks[index - 1]):
            kept.stream = m.hold(stream)
        out = c.whole(signal.plane) if fork.identity else None
        m.drop(stream)
        for arm in fork.arms:
            made, tape = branch_forward(c, arm, signal, signal.plane, "coupling")
            if y is not None:
                y.drop()
            y = made
            out = join(c, arm, out, y, tape)
            kept.arms.append(tape)
        assert out is not None
        stream, plane, before = out, fork.arms[0].of(signal.plane), kept
        tapes.append(kept)
    assert y is not None
    assert before is not None
    y.drop()
    if not c.keep:
        m.drop(before.signal.block)
    return Stream(stream, plane), tapes


def forks_backward(
    c: Context, run: Run, x: Stream, tapes: list[_ForkTape], g: Block, *, need: bool
) -> Block | None:
    """Use up ``g``; return the gradient of ``x``, which stays."""
    m, gradients = c.meter, list[Block]()
    replays = _replays(c, run.forks[-1], tapes[-1])
    for index in reversed(range(len(run.forks))):
        fork, kept = run.forks[index], tapes.pop()
        head = fork.head
        learns = head is not None and (head.norm or head.neuron == "leak")
        g_signal = _arms_backward(c, fork, replays, g, need=need or index > 0 or learns)
        if g_signal is None:
            m.drop(g)
            return None
        stream = kept.stream
        if index:
            _close(replays)
            replays = _replays(c, run.forks[index - 1], tapes[-1])
            if stream is None and not _is_reversible(fork):
                stream = _again(c, run.forks[index - 1], tapes[-1].signal, replays)
        else:
            m.hold(x.block)
            stream = _readable(c, fork, x)
        m.drop(g)
        g = g_signal
        if head is not None and _is_reversible(fork):
            reversible_backward(c, head, kept.plane, gradients)
        elif head is not None:
            assert stream is not None
            g = fire_backward(c, head, kept.plane, stream, g, gradients, y_is_free=False)
        c.settle(gradients)
        m.drop(stream, kept.signal.block, *kept.stats)
    _close(replays)
    return g


def _close(replays: list[Replay]) -> None:
    for replay in replays:
        replay.close()


def _readable(c: Context, fork: Fork, x: Stream) -> Block:
    """``x`` itself, but for an image that a norm has to read at every step: a copy."""
    head = fork.head
    if not x.expanded or (head is not None and head.spikes and not head.norm):
        return x.block
    copy = c.whole(x.plane)
    c.meter.drop(x.block)
    return copy


def _is_reversible(fork: Fork) -> bool:
    return fork.head is not None and fork.head.neuron == "reversible"


def _keeps_stream(c: Context, before: Fork) -> bool:
    if c.strategy in KEEPS_OUTPUT[1:]:
        return c.keep and any(not arm.norm for arm in before.arms)
    return c.keep and c.strategy == "store"


def _replays(c: Context, fork: Fork, kept: _ForkTape) -> list[Replay]:
    return [Replay(c, arm, tape, None) for arm, tape in zip(fork.arms, kept.arms, strict=True)]


def _again(c: Context, fork: Fork, signal: Signal, replays: list[Replay]) -> Block:
    """What ``fork`` gave out, made again."""
    out = c.whole(signal.plane) if fork.identity else None
    for replay in replays:
        out = replay.redo(out)
    assert out is not None
    return out


def _arms_backward(
    c: Context, fork: Fork, replays: list[Replay], g: Block, *, need: bool
) -> Block | None:
    """Gradient of the spikes; ``g`` stays held."""
    m, g_signal, extra = c.meter, None, None
    for index, replay in enumerate(replays):
        gradients = list[Block]()
        last = index + 1 == len(replays) and not fork.identity
        given = replay.undo(m.hold(g), gradients, free=last)
        part = replay.backward(given, gradients, need_input=need)
        if g_signal is None:
            g_signal = part
        else:
            extra = part
    m.drop(extra)
    return g_signal
