"""Bytes of a training at a setting: two micro-batches where they accumulate, an update, an evaluation batch.

Mirrors `revedge.planner.step` (frames, loss, update) and `revedge.engine.chain` (runs in turn). There from the first
step to the end: weights, buffers, 2 (AdamW) or 1 (SGD) tensors per parameter, and for AdamW a number each.
"""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from revedge.planner.form import runs as of
from revedge.planner.form.branch import STRATEGIES
from revedge.planner.form.forks import forks_backward, forks_forward
from revedge.planner.form.meter import Block, Meter
from revedge.planner.form.output import Output
from revedge.planner.form.replay import Replay
from revedge.planner.form.runs import Stream
from revedge.planner.form.shape import Net, NotCoveredError, Run, volume
from revedge.planner.form.tail import Context
from revedge.planner.setting import Setting
from revedge.planner.workspace import Convolution

_SLOTS = {"adamw": 2, "sgd": 1}


_COVERED = {
    "model", "model_options", "in_shape", "num_classes", "static", "timesteps", "batch_size", "micro_batch_size",
    "strategy", "slab_bytes", "span_count", "membrane_count", "chunk_bytes", "update_in_backward", "optimizer",
    "threads",
}  # fmt: skip


class RunBytes(NamedTuple):
    """Of one run under its strategy: how much more is live behind its forward pass than before it, and the most that is
    live during its forward or backward pass, above what was live before its forward pass.
    """

    kept: int
    top: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the formulas say of a training: bytes as the tracer counts them.

    ``sites`` are parts of the last micro-batch's step and of the evaluation, in order, each with the most that was
    live during it; a part of another comes before it.
    """

    peak_bytes: int
    weights_bytes: int
    optimizer_bytes: int
    convolutions: Set[Convolution]
    sites: Sequence[tuple[str, int]]
    start_bytes: int  # live before the first run of the last micro-batch
    runs: Sequence[RunBytes]
    most_spans: int  # of time that a block goes backward in; 1 where none is cut


def evaluate(net: Net, setting: Setting, page_bytes: int, *, with_sites: bool = False) -> Evaluated:
    """Return what a training step and an evaluation of ``net`` at ``setting`` take. Some ms.

    Raises:
        NotCoveredError: something of this has no formula.
    """
    _check(net, setting)
    m = Meter(page_bytes, setting.threads, with_sites=with_sites)
    weights_bytes = _sum(m, net.parameters)
    numbers = sum(net.parameters.values()) if setting.optimizer == "adamw" else 0
    optimizer_bytes = _SLOTS[setting.optimizer] * weights_bytes + numbers * m.bytes_of(4)
    static_bytes = weights_bytes + _sum(m, net.buffers) + optimizer_bytes
    m.live_bytes = m.peak_bytes = static_bytes
    rounds = 1 if setting.micro_batch_size == setting.batch_size else 2
    step = _Step(net, setting, m)
    for _ in range(rounds):  # autograd adds gradients of the second to those of the first, in place
        m.sites.clear()
        step = _Step(net, setting, m)
        step.train()
        m.live_bytes = static_bytes + (0 if setting.update_in_backward else weights_bytes)
    m.live_bytes = static_bytes
    with m.site("evaluation"):
        _Step(net, setting, m).look()
    return Evaluated(
        peak_bytes=m.peak_bytes,
        weights_bytes=static_bytes - optimizer_bytes,
        optimizer_bytes=optimizer_bytes,
        convolutions=m.convolutions,
        sites=m.sites,
        start_bytes=step.starts[0],
        runs=step.runs(),
        most_spans=m.most_spans,
    )


def _sum(m: Meter, sizes: Mapping[int, int]) -> int:
    return sum(m.bytes_of(size) * count for size, count in sizes.items())


def _check(net: Net, setting: Setting) -> None:
    """Raise NotCoveredError for what these formulas leave out."""
    for each in dataclasses.fields(setting):
        if each.name not in _COVERED and getattr(setting, each.name) != each.default:
            raise NotCoveredError(f"{each.name}={getattr(setting, each.name)}")
    names = setting.strategy
    if not {names} <= STRATEGIES if isinstance(names, str) else not set(names) <= STRATEGIES:
        raise NotCoveredError(f"strategy {names}")
    if not isinstance(names, str) and len(names) != len(net.runs):
        raise NotCoveredError(f"{len(names)} strategies")
    second = net.runs[1]
    if setting.static and second.kind == "feed":
        first = second.branches[0].units[0]
        if first.norm or not first.spikes:
            raise NotCoveredError("an image that is copied for every time step")


@dataclass(slots=True)
class _Link:
    """What stays of one run: its tape, and its input and output where its backward needs them."""

    tape: Any
    x: Stream | None
    out: Stream | None


class _Step:
    def __init__(self, net: Net, setting: Setting, m: Meter) -> None:
        self.net, self.setting, self.m = net, setting, m
        names = setting.strategy
        self.strategies = [names] * len(net.runs) if isinstance(names, str) else list(names)
        self.starts: list[int] = []  # live bytes before each run, and behind the last
        self.tops: list[int] = []  # most of each forward pass, then of each backward pass

    def train(self) -> None:
        """Forward, loss, backward."""
        m, setting = self.m, self.setting
        b = setting.micro_batch_size
        frames = self._frames()
        logits, links = self._forward(frames, keep=True)
        self.starts.append(m.live_bytes)
        k = volume(logits.plane)
        g = m.floats(setting.timesteps * b * k)
        m.drop(logits.block)
        m.floats(b * k)  # their mean over time
        _loss_bytes(m, b, k)
        m.floats(1)  # the loss, and its gradient
        m.floats(1)
        self._backward(links, g)

    def runs(self) -> list[RunBytes]:
        """What each run keeps, and its top."""
        forward, backward = self.tops[: len(self.net.runs)], self.tops[len(self.net.runs) :]
        tops = zip(self.starts[:-1], self.starts[1:], forward, reversed(backward), strict=True)
        return [RunBytes(end - start, max(a, b) - start) for start, end, a, b in tops]

    def look(self) -> None:
        """An evaluation batch."""
        m, setting = self.m, self.setting
        frames = self._frames()
        logits, _ = self._forward(frames, keep=False)
        mean = m.floats(setting.micro_batch_size * volume(logits.plane))
        m.drop(logits.block, mean)

    def _frames(self) -> Stream:
        m, setting = self.m, self.setting
        steps = 1 if setting.static else setting.timesteps
        count = steps * setting.micro_batch_size * volume(setting.in_shape)
        raw = m.new(count)
        m.new(8 * setting.micro_batch_size)  # labels
        x = m.floats(count)
        m.drop(raw)
        return Stream(x, setting.in_shape)

    def _context(self, index: int, *, keep: bool) -> Context:
        setting = self.setting
        steps = 1 if setting.static and index == 0 else setting.timesteps
        return Context(
            self.m,
            steps,
            setting.micro_batch_size,
            self.strategies[index],
            setting.slab_bytes,
            setting.span_count,
            setting.membrane_count,
            setting.chunk_bytes,
            keep,
            setting.update_in_backward,
        )

    def _rebuilds(self, index: int) -> bool:
        """Whether a run's input is computed again by the run before it."""
        runs, setting = self.net.runs, self.setting
        if index == 0 or setting.slab_bytes is None or (setting.static and index == 1):
            return False
        run, before = runs[index], runs[index - 1]
        both = run.kind == before.kind == "feed" and len(run.branches) == len(before.branches) == 1
        names = {self.strategies[index], self.strategies[index - 1]}
        return both and not before.branches[0].pools and names <= {"keep-spikes", "reverse"}

    def _forward(self, x: Stream, *, keep: bool) -> tuple[Stream, list[_Link]]:
        m, links = self.m, list[_Link]()
        stream, tape = Stream(m.hold(x.block), x.plane), None
        for index, run in enumerate(self.net.runs):
            c = self._context(index, keep=keep)
            if index == 1:
                stream.expanded = self.setting.static and c.timesteps > 1
            self.starts.append(m.live_bytes)
            kept_x = None
            if keep and run.kind in ("feed", "forks") and not self._rebuilds(index):
                kept_x = Stream(m.hold(stream.block), stream.plane, stream.expanded)
            with m.highest(self.tops), m.site("forward of", _name(index, run, self.net)):
                stream, made = _FORWARD[run.kind](c, run, stream)
            if not keep:
                _close(m, tape)
            tape, out = made, None
            if keep and run.kind in ("residual", "coupling"):
                out = Stream(m.hold(stream.block), stream.plane)
            links.append(_Link(tape, kept_x, out))
        if not keep:
            _close(m, tape)
        return stream, links

    def _backward(self, links: list[_Link], g: Block) -> None:
        m, last = self.m, len(self.net.runs) - 1
        m.hold(g)  # autograd does until the end
        before: Stream | None = None  # the input of the run behind, which is held on to
        for index in range(last, -1, -1):
            run, link, c = self.net.runs[index], links.pop(), self._context(index, keep=True)
            if before is not None:
                m.drop(before.block)
            before = link.x
            with m.highest(self.tops), m.site("backward of", _name(index, run, self.net)):
                x: Output | None = None
                if link.x is not None:
                    x = Output.of(c, link.x.block, link.x.plane)
                    x.free = index > 0 and run.kind == "feed" and links[-1].out is None
                    x.expanded = link.x.expanded
                elif self._rebuilds(index):
                    x = self._again(index - 1, links[-1])
                g = self._run_backward(c, index, link, x, g)
            if x is not None and link.x is None:
                x.drop()
            if index == 1 and self.setting.static:  # the image's gradient: the sum over time
                if before is not None:
                    m.drop(before.block)
                before = None
                image = self.net.runs[0].branches[0].of(self.setting.in_shape)
                one = m.floats(c.batch * volume(image))
                m.drop(g)
                g = one
        if before is not None:
            m.drop(before.block)

    def _again(self, index: int, link: _Link) -> Output:
        c, run = self._context(index, keep=True), self.net.runs[index]
        x = None if link.x is None else Output.of(c, link.x.block, link.x.plane)
        return Replay(c, run.branches[0], link.tape[0], x).again()

    def _run_backward(
        self, c: Context, index: int, link: _Link, x: Output | None, g: Block
    ) -> Block:
        run, need = self.net.runs[index], index > 0
        if run.kind == "feed":
            free = index < len(self.net.runs) - 1
            found = of.feed_backward(c, run, x, link.tape, g, free=free, need=need)
        elif run.kind == "forks":
            assert link.x is not None
            found = forks_backward(c, run, link.x, link.tape, g, need=need)
        else:
            assert link.out is not None
            back = of.residual_backward if run.kind == "residual" else of.coupling_backward
            found = back(c, run, link.out, link.tape, g)
        return Block(0) if found is None else found


_FORWARD: Mapping[str, Any] = {
    "feed": of.feed_forward,
    "residual": of.residual_forward,
    "coupling": of.coupling_forward,
    "forks": forks_forward,
}


def _name(index: int, run: Run, net: Net) -> str:
    names = {0: "the stem", len(net.runs) - 1: "the head"}
    return names.get(index, f"run {index} ({run.kind})")


def _close(m: Meter, tape: Any) -> None:
    """Drop the statistics that a run without a tape has put together."""
    for each in tape or ():
        for part in (each, *getattr(each, "arms", ())):
            m.drop(*part.stats)


def _loss_bytes(m: Meter, b: int, k: int) -> None:
    """Cross entropy with label smoothing: log-probabilities, and some numbers per sample."""
    m.note(4 * b * k, *[4] * 6, 4 * b, b)
