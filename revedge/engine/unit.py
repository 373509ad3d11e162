"""The spiking unit and the branch: the two building blocks that every memory strategy understands.

Shapes: T time, B batch, C channels; ``...`` is what the tail makes of it (usually H, W).
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revedge.errors import UsageError
from revedge.neurons import BaseNode, ReversibleNode

# Streams are multiples of 2**-14 and below 2**9, so that their sums are exact in float32.
GRID_BITS = 14
INPUT_GRID_BITS = 18  # the input of a reversible neuron: multiples of 2**-18 below 2**5


class GlobalMean(nn.Module):
    """Mean over height and width: ``[N, C, H, W] -> [N, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the two last axes."""
        return x.mean((-2, -1))


class Unit(nn.Module):
    """Normalize -> neuron -> pool -> dropout -> operator, each of them optional.

    Starting with the normalization means that the only large tensor between two units is the output of a convolution,
    and that everything else of a unit can be made again from it (or from the spikes at one bit each).

    Args:
        norm: batch normalization over all of T, B and space, or None.
        neuron: a node of `revedge.neurons`, or None. Its state starts from rest in every sequence.
        pool: a module on ``[T*B, ...]``, or None.
        dropout: probability of silencing an input of ``op``; one mask serves all time steps.
        op: convolution, linear layer or any module on ``[T*B, ...]``, or None.

    Modules that the engine has no hand-written backward for run under ordinary autograd inside the same strategies.
    """

    def __init__(
        self,
        *,
        norm: _BatchNorm | None = None,
        neuron: BaseNode | ReversibleNode | None = None,
        pool: nn.Module | None = None,
        dropout: float = 0.0,
        op: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise UsageError(
                f"dropout={dropout} is not in [0, 1); it is the probability of silencing an input"
            )
        self.norm = norm
        self.neuron = neuron
        self.pool = pool
        self.dropout = float(dropout)
        self.op = op

    def extra_repr(self) -> str:
        """Show the dropout, which is not a module."""
        return f"dropout={self.dropout}" if self.dropout else ""

    @property
    def spikes_are_bits(self) -> bool:
        """Whether what the neuron gives out is 0 or 1 and nothing else."""
        return self.neuron is not None and not isinstance(self.neuron, ReversibleNode)

    def step(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One time step ``[B, ...]`` in plain PyTorch with the neuron's state ``v`` in and out.

        Raises:
            ValueError: there is a neuron and no state for it.
        """
        x = normalize(self.norm, x)
        if self.neuron is not None:
            if isinstance(self.neuron, ReversibleNode) and self.norm is not None:
                x = to_grid(x, INPUT_GRID_BITS)
            if v is None:
                raise ValueError("a unit with a neuron needs its state; take it from state_spec()")
            x, v = self.neuron.step(x, v)
        for module in (self.pool, self.op):
            x = x if module is None else module(x)
        return x, v


class Branch(nn.Module):
    """Units in turn; with ``norm`` (and ``pool``) at the end the result is put on the grid.

    Args:
        units: at least one.
        norm: trailing batch normalization; its output is rounded to the grid, so that adding it to a stream is exact.
        pool: between the trailing normalization and the rounding.
    """

    def __init__(
        self, units: list[Unit], *, norm: _BatchNorm | None = None, pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not units:
            raise UsageError("a Branch of 0 units computes nothing; give it at least one Unit")
        self.units = nn.ModuleList(units)
        self.norm = norm
        self.pool = pool

    @property
    def on_grid(self) -> bool:
        """Whether the output is a multiple of 2**-GRID_BITS."""
        return self.norm is not None

    def unit_list(self) -> list[Unit]:
        """Return the units with their type."""
        return [unit for unit in self.units if isinstance(unit, Unit)]

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step; takes the states of its neurons from the front of ``states`` and returns the new ones."""
        new: list[Tensor] = []
        for unit in self.unit_list():
            v = states[len(new)] if unit.neuron is not None else None
            x, v = unit.step(x, v)
            if v is not None:
                new.append(v)
        if self.norm is not None:
            x = normalize(self.norm, x)
            x = to_grid(x if self.pool is None else self.pool(x), GRID_BITS)
        return x, new


def normalize(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Batch normalization with the running statistics, as the kernels round it: ``x * scale + shift``."""
    if norm is None:
        return x
    from revedge.kernels import norm_affine

    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale, shift, _ = norm_affine(
        norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
    )
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return x * scale.view(shape) + shift.view(shape)


def to_grid(x: Tensor, bits: int) -> Tensor:
    """Round to multiples of ``2**-bits``, half to even, without the range check of the kernel."""
    return torch.round(x * float(2**bits)) * float(2.0**-bits)


def unfold_time(y: Tensor, like: Tensor) -> Tensor:
    """``[T*B, ...] -> [T, B, ...]`` with T and B of ``like``; no copy."""
    return y.view(*like.shape[:2], *y.shape[1:])
