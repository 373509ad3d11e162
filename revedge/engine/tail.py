"""The tail of a unit: pool, dropout and operator, forward and backward, chunk by chunk.

The backward gets the tail's input again, never its output, so nothing of the tail has to be kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from revedge.engine.autocast import convolved, transformed
from revedge.engine.pooled import behind_window
from revedge.engine.signal import Signal, chunks
from revedge.engine.unit import Unit
from revedge.engine.vjp import Gradients, is_known, module_backward, module_forward
from revedge.kernels import ChannelSums


@dataclass(frozen=True, slots=True)
class Moment:
    """What a module's output depends on besides its input and its weights, before it ran for the first time.

    Attributes:
        cpu, gpu: states of the generators.
        modes: its modules, and whether each was in training.
    """

    cpu: Tensor
    gpu: Tensor | None
    modes: tuple[tuple[nn.Module, bool], ...]

    @classmethod
    def now(cls, x: Tensor, module: nn.Module) -> "Moment":
        """Return what ``module``, given ``x``, would find."""
        gpu = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        modes = tuple((part, part.training) for part in module.modules())
        return cls(torch.get_rng_state(), gpu, modes)

    def enter(self, x: Tensor) -> None:
        """Make it so again."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, x.device)
        for module, training in self.modes:
            module.training = training


@dataclass(slots=True)
class Chance:
    """What replays the randomness of a tail: the seed of its dropout mask, the moments of user modules."""

    seed: int | None = None
    moments: dict[str, Moment] = field(default_factory=dict)


def draw(unit: Unit) -> Chance:
    """Draw, in the forward pass, all that the tail needs of chance."""
    chance = Chance()
    if unit.training and unit.dropout:
        chance.seed = int(torch.randint(2**62, ()))
    return chance


Cuts = Sequence[tuple[int, int]]  # (first, last) output channels


def tail_forward(
    unit: Unit,
    signal: Signal,
    chance: Chance,
    cuts: Cuts | None = None,
    sums: ChannelSums | None = None,
) -> Tensor:
    """Pool, drop out and operate on ``signal`` ``[T, B, ...]``; returns ``[T, B, ...]``.

    ``cuts``, neighbors in order, computes these output channels only, each cut by an operation of its own.
    ``sums``, without cuts, are taken of each chunk of the result while it is in the cache.
    """
    stages = list(_stages(unit, chance, signal))
    if not stages:
        x = signal.whole()
        if sums is not None:
            sums.add(x.contiguous())
        return x.view(signal.shape)
    out: Tensor | None = None
    for start, stop in chunks(signal, whole=not sample_wise(unit, chance)):
        x = signal.read(start, stop)
        for stage in stages[:-1]:
            x = stage.forward(x)
        for first, last in cuts or [(0, 0)]:
            y = _operate(unit.op, x, first, last) if cuts else stages[-1].forward(x)
            channels = cuts[-1][1] - cuts[0][0] if cuts else y.shape[1]
            if y.shape[0] == signal.planes and y.shape[1] == channels:
                y = y.contiguous()
                if sums is not None:
                    sums.add(y)
                return y.view(*signal.shape[:2], *y.shape[1:])
            if out is None:
                out = y.new_empty((signal.planes, channels, *y.shape[2:]))
            at = first - cuts[0][0] if cuts else 0
            out[start:stop, at : at + y.shape[1]] = y
            del y
        if sums is not None and out is not None:
            sums.add(out[start:stop])
        del x  # before the next chunk is made
    assert out is not None
    return out.view(*signal.shape[:2], *out.shape[1:])


def tail_shape(unit: Unit, signal: Signal) -> torch.Size:
    """Return the shape of the tail's output; an empty batch is sent through."""
    x = signal.like.new_empty((0, *signal.plane_shape), dtype=torch.float32)
    for stage in _stages(unit, Chance(), signal):
        x = stage.forward(x)
    return torch.Size([*signal.shape[:2], *x.shape[1:]])


def _operate(op: nn.Module | None, x: Tensor, first: int, last: int) -> Tensor:
    """Output channels ``first`` to ``last`` of a convolution or linear layer."""
    assert isinstance(op, nn.Conv2d | nn.Linear)
    weight, bias = op.weight[first:last], None if op.bias is None else op.bias[first:last]
    if isinstance(op, nn.Linear):
        return transformed(x, weight, bias).to(x.dtype)
    return convolved(x, op, weight, bias).to(x.dtype)


def tail_backward(
    unit: Unit, signal: Signal, chance: Chance, g: Tensor, gradients: Gradients, *, need_input: bool
) -> Tensor | None:
    """Return the gradient of ``signal`` and add those of the parameters.

    Args:
        unit: the unit.
        signal: the tail's input.
        chance: as drawn in the forward pass.
        g: gradient of the tail's output ``[T, B, ...]``; it is overwritten where the result has its shape.
        gradients: filled.
        need_input: whether the result is wanted; else it is None.
    """
    stages = list(_stages(unit, chance, signal))
    if not stages:
        return g
    g_planes = g.flatten(0, 1)
    g_in = g_planes if g_planes.shape[1:] == signal.plane_shape else None
    # From the last to the first, as gradients become known where a branch is cut over time.
    for start, stop in chunks(signal, whole=not sample_wise(unit, chance), backward=True):
        part = _chunk_backward(
            stages, signal.read(start, stop), g_planes[start:stop], gradients, need_input=need_input
        )
        if part is None:
            continue
        if (start, stop) == (0, signal.planes):
            return part.contiguous().view(signal.shape)
        if g_in is None:
            g_in = part.new_empty((signal.planes, *signal.plane_shape))
        g_in[start:stop] = part
        del part  # before the next chunk is made
    return g_in.view(signal.shape) if need_input and g_in is not None else None


class _Stage(Protocol):
    def forward(self, x: Tensor) -> Tensor: ...

    def backward(
        self, x: Tensor, g: Tensor, gradients: Gradients, *, need_input: bool
    ) -> Tensor | None: ...


def _chunk_backward(
    stages: list[_Stage], x: Tensor, g: Tensor, gradients: Gradients, *, need_input: bool
) -> Tensor | None:
    inputs = [x]
    for stage in stages[:-1]:
        inputs.append(stage.forward(inputs[-1]))
    current: Tensor | None = g
    for stage in reversed(stages):
        x = inputs.pop()
        if current is None:
            return None
        current = stage.backward(x, current, gradients, need_input=need_input or bool(inputs))
    return current


def sample_wise(unit: Unit, chance: Chance) -> bool:
    """Whether the tail may be cut into chunks of samples."""
    return chance.seed is None and is_known(unit.pool) and is_known(unit.op)


def _stages(unit: Unit, chance: Chance, signal: Signal) -> Iterator[_Stage]:
    if signal.window is not None:
        for part in behind_window(unit.pool):
            yield _Module(part, chance, "pool")
    elif unit.pool is not None:
        yield _Module(unit.pool, chance, "pool")
    if chance.seed is not None:
        yield _Dropout(unit.dropout, chance.seed, signal.shape[:2])
    if unit.op is not None:
        yield _Module(unit.op, chance, "op")


class _Module:
    """A module on ``[N, ...]``. What it draws in the forward pass it draws again in each replay."""

    def __init__(self, module: nn.Module, chance: Chance, name: str) -> None:
        self.module, self.chance, self.name = module, chance, name

    def forward(self, x: Tensor) -> Tensor:
        with self._replayed(x):
            y = module_forward(self.module, x)
        return y.to(x.dtype)  # autocast computes it in less

    def backward(
        self, x: Tensor, g: Tensor, gradients: Gradients, *, need_input: bool
    ) -> Tensor | None:
        with self._replayed(x):
            return module_backward(self.module, x, g, gradients, need_input=need_input)

    def _replayed(self, x: Tensor) -> AbstractContextManager[None]:
        if is_known(self.module):
            return nullcontext()
        if self.name not in self.chance.moments:
            self.chance.moments[self.name] = Moment.now(x, self.module)
            return nullcontext()
        return _replay(x, self.module, self.chance.moments[self.name])


class _Dropout:
    """One mask ``[B, ...]`` for all time steps, made anew from its seed whenever it is needed."""

    def __init__(self, probability: float, seed: int, time_and_batch: torch.Size) -> None:
        self.probability, self.seed, self.time_and_batch = probability, seed, time_and_batch

    def forward(self, x: Tensor) -> Tensor:
        # Meta tensors, in planning, have no values and no generator.
        generator = None if x.is_meta else torch.Generator(device=x.device).manual_seed(self.seed)
        folded = x.view(*self.time_and_batch, *x.shape[1:])
        kept = (
            torch.rand(folded.shape[1:], generator=generator, device=x.device) >= self.probability
        )
        return (folded * (kept.to(x.dtype) * (1.0 / (1.0 - self.probability)))).view(x.shape)

    def backward(
        self, x: Tensor, g: Tensor, gradients: Gradients, *, need_input: bool
    ) -> Tensor | None:
        del x, gradients
        return self.forward(g) if need_input else None


@contextmanager
def _replay(x: Tensor, module: nn.Module, moment: Moment) -> Iterator[None]:
    """Run with generators and modes as in the forward pass, then put them back."""
    before = Moment.now(x, module)
    moment.enter(x)
    try:
        yield
    finally:
        before.enter(x)
