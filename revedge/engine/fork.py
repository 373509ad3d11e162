"""Forks: blocks whose neuron stands before the shortcut, ``z <- s + branch(s)`` with ``s = neuron(z)``.

Spiking ResNets fire after the addition, so the shortcut carries spikes and nothing can be subtracted. Nothing has to
be: the whole next stream is a function of these spikes. At one bit each they are all that a block keeps; the stream
that the next block's neuron needs in the backward pass is made from them by the branch that is replayed anyway.
No block needs the shape of the one before it, so all stages of such a net are one run.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from revedge.engine.fire import Stats, fire, fire_backward_, take_stats
from revedge.engine.output import Output
from revedge.engine.replay import BranchTape, Replay, branch_forward, join
from revedge.engine.run import Checksums, Given, Run
from revedge.engine.signal import Signal
from revedge.engine.strategy import Saving
from revedge.engine.unit import Branch, Unit
from revedge.engine.vjp import Gradients
from revedge.errors import UsageError
from revedge.neurons import BaseNode, ReversibleNode


class Fork(nn.Module):
    """One neuron and what reads its spikes: ``z -> [s +] sum of arms(s)``, ``s = neuron(norm(z))``.

    Args:
        arms: branches whose first unit has neither norm nor neuron: it reads spikes.
        head: a unit of norm and neuron, or of a neuron alone; None where the input is spikes already.
        identity: add the spikes themselves.

    Raises:
        UsageError: a head or an arm that cannot be one.
    """

    def __init__(self, arms: list[Branch], *, head: Unit | None, identity: bool = False) -> None:
        super().__init__()
        firsts = [arm.unit_list()[0] for arm in arms]
        if not arms or any(first.norm or first.neuron for first in firsts):
            raise UsageError(
                "a Fork needs arms that begin with an operator: its head is their neuron"
            )
        if head is not None and (head.neuron is None or head.pool or head.op or head.dropout):
            raise UsageError("the head of a Fork is a norm and a neuron, or a neuron; no more")
        self.head = head
        self.arms = nn.ModuleList(arms)
        self.identity = identity

    def arm_list(self) -> list[Branch]:
        """Return the arms with their type."""
        return [arm for arm in self.arms if isinstance(arm, Branch)]

    def unit_list(self) -> list[Unit]:
        """Units in the order of their states."""
        heads = [] if self.head is None else [self.head]
        return heads + [unit for arm in self.arm_list() for unit in arm.unit_list()]

    def start(self, signal: Signal) -> Tensor | None:
        """What the arms are added to: the spikes in memory of their own, or nothing."""
        if not self.identity:
            return None
        s = signal.whole().view(signal.shape)
        return s.clone() if signal.dense is not None else s


@dataclass(slots=True)
class _ForkTape:
    stats: Stats | None
    signal: Signal
    stream: Tensor | None = None
    arms: list[BranchTape] = field(default_factory=list)


@dataclass(slots=True)
class _Tape:
    forks: list[_ForkTape] = field(default_factory=list)
    sums: Checksums = field(default_factory=lambda: Checksums("none"))


class Forks(Run):
    """Forks in turn; the shape of ``x`` ``[T, B, ...]`` may change from one to the next.

    Memory between forward and backward: ``x`` (a reference), plus per fork one bit for each spike of its head; under
    ``keep-conv`` also one tensor per convolution, under ``store`` the stream and the float32 spikes too. A reversible
    neuron as head keeps its real-valued output instead of bits.

    Raises:
        UsageError: no fork, or one without head that is not the first.
    """

    keeps_input = True

    def __init__(
        self, forks: list[Fork], *, strategy: str = "reverse", check: str = "none"
    ) -> None:
        super().__init__(strategy, check)
        if not forks or any(fork.head is None for fork in forks[1:]):
            raise UsageError("Forks need a Fork, and all but the first need a head")
        self.forks = nn.ModuleList(forks)

    def fork_list(self) -> list[Fork]:
        """Return the forks with their type."""
        return [fork for fork in self.forks if isinstance(fork, Fork)]

    def run_forward(self, x: Given, *, keep: bool) -> tuple[Tensor, _Tape]:
        """See `Carried`."""
        tape = _Tape(sums=Checksums(self.check if keep else "none"))
        saving = self.saving(keep=keep)
        stream = _readable(self.fork_list()[0].head, x.take())
        for index, fork in enumerate(self.fork_list()):
            kept = _ForkTape(*_fire(fork, stream, saving))
            if index:
                tape.sums.take(stream)
                before = self.fork_list()[index - 1]
                kept.stream = stream if _keeps_stream(saving, before) else None
            del stream
            out = fork.start(kept.signal)
            for arm in fork.arm_list():
                y, arm_tape = branch_forward(arm, kept.signal, saving, "coupling")
                out = join(arm, out, y, arm_tape, saving)
                kept.arms.append(arm_tape)
            assert out is not None
            stream = out
            if keep:
                tape.forks.append(kept)
        return stream, tape

    def run_backward(
        self,
        x: Tensor | Output | None,
        out: Given | None,
        tape: Any,
        g: Given,
        gradients: Gradients,
        *,
        need_input: bool,
    ) -> Tensor | None:
        """See `Carried`."""
        del out
        assert isinstance(x, Tensor)
        forks = self.fork_list()
        g_stream, replays = g.take_writable(), _replays(forks[-1], tape.forks[-1], self.slab_bytes)
        for index in reversed(range(len(forks))):
            fork, kept = forks[index], tape.forks.pop()
            kept.arms.clear()
            needed = need_input or index > 0 or _has_parameters(fork.head)
            g_signal = _arms_backward(fork, replays, g_stream, gradients, need_input=needed)
            if g_signal is None:
                return None
            stream = kept.stream if index else _readable(fork.head, x)
            if index:
                replays = _replays(forks[index - 1], tape.forks[-1], self.slab_bytes)
                if stream is None and not _is_reversible(fork.head):
                    stream = _again(forks[index - 1], tape.forks[-1].signal, replays)
                if stream is not None:
                    tape.sums.compare(stream, f"fork {index}")
            g_stream = g_signal
            if fork.head is not None:
                g_stream = fire_backward_(
                    fork.head, stream, kept.signal, kept.stats, g_signal, gradients
                )
                gradients.settle(fork.head)
            del kept, stream, g_signal
        return g_stream

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See `Run`."""
        new: list[Tensor] = []
        for fork in self.fork_list():
            if fork.head is not None:
                x, v = fork.head.step(x, states[len(new)])
                assert v is not None
                new.append(v)
            out = x if fork.identity else None
            for arm in fork.arm_list():
                y, states_of_arm = arm.step(x, states[len(new) :])
                out = y if out is None else out + y
                new += states_of_arm
            assert out is not None
            x = out
        return x, new


def _readable(head: Unit | None, x: Tensor) -> Tensor:
    """Contiguous, but for an image that a neuron reads at every step."""
    repeats = head is not None and isinstance(head.neuron, BaseNode) and head.norm is None
    return x if repeats and x.stride(0) == 0 else x.contiguous()


def _fire(fork: Fork, stream: Tensor, saving: Saving) -> tuple[Stats | None, Signal]:
    head = fork.head
    if head is None:
        return None, Signal(stream.shape, dense=stream)
    stats = None if head.norm is None else take_stats(head.norm, stream)
    stores = saving.keep and saving.strategy == "store"
    return stats, fire(head, stream, stats, pack=head.spikes_are_bits and not stores)


def _keeps_stream(saving: Saving, before: Fork) -> bool:
    """Whether the stream that ``before`` gave out stays; else it is made again from spikes.

    Under `keep-conv` that takes no convolution, because a normalization has its input kept; without one it would.
    """
    if saving.strategy in ("keep-conv", "invert"):
        return saving.keep and any(arm.norm is None for arm in before.arm_list())
    return saving.keep and saving.strategy == "store"


def _replays(fork: Fork, kept: _ForkTape, slab_bytes: int | None) -> list[Replay]:
    pairs = zip(fork.arm_list(), kept.arms, strict=True)
    return [Replay(arm, tape, None, slab_bytes) for arm, tape in pairs]


def _again(fork: Fork, signal: Signal, replays: list[Replay]) -> Tensor:
    """What ``fork`` gave out, by the operations of the forward pass."""
    out = fork.start(signal)
    for replay in replays:
        out = replay.redo(out)
    assert out is not None
    return out


def _arms_backward(
    fork: Fork, replays: list[Replay], g: Tensor, gradients: Gradients, *, need_input: bool
) -> Tensor | None:
    """Gradient of the spikes of ``fork``; may overwrite ``g``, that of what it gave out."""
    g_signal: Tensor | None = None
    for index, replay in enumerate(replays):
        last = index + 1 == len(replays) and not fork.identity
        replay.undo(None, Given(g, free=last), gradients)
        part = replay.backward(gradients, need_input=need_input)
        if part is not None:
            g_signal = part if g_signal is None else g_signal.add_(part)
    if g_signal is not None and fork.identity:
        g_signal.add_(g)
    return g_signal


def _is_reversible(head: Unit | None) -> bool:
    return head is not None and isinstance(head.neuron, ReversibleNode)


def _has_parameters(head: Unit | None) -> bool:
    return head is not None and any(p.requires_grad for p in head.parameters())
