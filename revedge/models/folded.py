"""A trained network without batch statistics: each normalization becomes part of the operator before it.

What is left is operators, neurons and streams, whose numbers can be put on grids (snapping.py). The result is a
`SpikingNet` like any other: every memory strategy trains it, and a micro-batch of any size gives the same gradient,
because nothing in it depends on the other samples of a batch.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revedge.engine import Branch, Coupling, Feed, Forks, Residual, Run, Unit
from revedge.errors import ExportError
from revedge.models.net import SpikingNet
from revedge.neurons import BaseNode, IFNode, LIFNode, ParametricLIFNode, ReversibleNode

NEURON_BITS = 10  # thresholds and resets are multiples of 2**-10
LARGEST_SHIFT = 6  # leaks are 1 - 2**-s with s from 1 to 6
Operator = nn.Conv1d | nn.Conv2d | nn.Linear
OPERATORS = (nn.Conv1d, nn.Conv2d, nn.Linear)  # output channel first in the weight


class FixedNorm(_BatchNorm):
    """A scale and a shift per channel that no statistics move; it stands where a normalization cannot be folded.

    Where one was folded, but a branch must end in one, it changes nothing and learns nothing.
    """

    def __init__(self, scale: Tensor, shift: Tensor, *, learns: bool) -> None:
        super().__init__(len(scale), eps=0.0, device=scale.device, dtype=scale.dtype)
        super().train(False)
        self.weight.copy_(scale).requires_grad_(learns)
        self.bias.copy_(shift).requires_grad_(learns)

    def train(self, mode: bool = True) -> "FixedNorm":
        """Stay as it is: it has no statistics to take."""
        del mode
        return self

    @property
    def learns(self) -> bool:
        """Whether it does anything."""
        return bool(self.weight.requires_grad)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        del input


def fold_network(net: SpikingNet) -> SpikingNet:
    """Return a copy of ``net`` with every normalization folded, and leaks, thresholds and resets on dyadic grids.

    Leaks become 1 - 2**-s: the time constant is the power of two whose leak lies closest, from 2 to 64 steps; a learned
    one is fixed. With a decayed input the gain is 2**-s, as before 1/tau. Thresholds and resets become multiples of
    2**-10. Dropout is gone. A normalization that reads a stream or a sum becomes a `FixedNorm`.
    The names of what is left are those of ``net``; every operator has a bias.

    A folded network is given back as a copy of itself.

    Raises:
        ExportError: a normalization without running statistics, or a neuron without an exact form; both named.
    """
    folded = copy.deepcopy(net)
    walk = _Fold({module: name for name, module in folded.named_modules()})
    with torch.no_grad():
        for run in folded.runs():
            walk.run(run)
    return folded


class _Fold:
    """Walks in order of execution; ``previous`` is the operator that the next value comes straight from."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self.names = names
        self.previous: Operator | None = None

    def run(self, run: Run) -> None:
        if isinstance(run, Forks):
            for index, fork in enumerate(run.fork_list()):
                # An operator straight before the first fork has no other reader; before the others stands a sum.
                self.previous = None if index else self.previous
                if fork.head is not None:
                    self.unit(fork.head)
                for arm in fork.arm_list():
                    self.apart(arm)
            return
        branches = branches_of(run)
        for branch in branches:
            if isinstance(run, Feed) and len(branches) == 1:
                self.branch(branch)
            else:
                self.apart(branch)

    def apart(self, branch: Branch) -> None:
        """A branch that reads a stream, and whose result is added to one: nothing folds across its ends."""
        self.previous = None
        self.branch(branch)
        self.previous = None

    def branch(self, branch: Branch) -> None:
        for unit in branch.unit_list():
            self.unit(unit)
        if branch.norm is not None:
            branch.norm = self.norm(branch.norm, f"{self.names[branch]}.norm", must_stay=True)
            self.previous = None

    def unit(self, unit: Unit) -> None:
        if unit.norm is not None:
            unit.norm = self.norm(unit.norm, f"{self.names[unit]}.norm", must_stay=False)
        if unit.neuron is not None:
            unit.neuron = dyadic(unit.neuron, f"{self.names[unit]}.neuron")
        unit.dropout = 0.0
        self.previous = unit.op if isinstance(unit.op, OPERATORS) else None
        for part in [] if unit.op is None else unit.op.modules():
            if isinstance(part, OPERATORS):
                give_bias(part)

    def norm(self, norm: _BatchNorm, name: str, *, must_stay: bool) -> FixedNorm | None:
        """Fold ``norm``; return what stands in its place."""
        if isinstance(norm, FixedNorm):
            return norm
        scale, shift = affine_of(norm, name)
        if self.previous is None or self.previous.weight.shape[0] != norm.num_features:
            return FixedNorm(scale.to(norm.weight.dtype), shift.to(norm.weight.dtype), learns=True)
        fold_into(self.previous, scale, shift)
        if not must_stay:
            return None
        ones = torch.ones_like(norm.weight)
        return FixedNorm(ones, torch.zeros_like(ones), learns=False)


def branches_of(run: Run) -> list[Branch]:
    """The branches of a run other than Forks, in the order in which they run."""
    assert isinstance(run, Coupling | Feed | Residual)
    return run.half_blocks() if isinstance(run, Coupling) else run.branch_list()


def give_bias(op: Operator) -> None:
    """Give ``op`` a bias of 0 where it has none."""
    if op.bias is None:
        zeros = torch.zeros(op.weight.shape[0], dtype=op.weight.dtype, device=op.weight.device)
        op.bias = nn.Parameter(zeros)


def affine_of(norm: _BatchNorm, name: str) -> tuple[Tensor, Tensor]:
    """Return scale and shift ``[C]`` of a normalization with running statistics, in float64.

    Raises:
        ExportError: it has none; ``name`` says where.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ExportError(
            f"{name} has no running statistics, so its output depends on the batch; build it with "
            "track_running_stats=True"
        )
    scale = 1.0 / torch.sqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def fold_into(op: Operator, scale: Tensor, shift: Tensor) -> None:
    """Let ``op`` compute ``op(x) * scale + shift``; products in float64, rounded once."""
    give_bias(op)
    assert op.bias is not None
    op.weight.copy_(op.weight.double() * scale.reshape([-1] + [1] * (op.weight.dim() - 1)))
    op.bias.copy_(op.bias.double() * scale + shift)


def dyadic(neuron: BaseNode | ReversibleNode, name: str) -> BaseNode:
    """Return the neuron with leak 1 - 2**-s, threshold and reset on the grid; see `fold_network`.

    Raises:
        ExportError: it is a neuron that has no such form, or its threshold is 0 on the grid.
    """
    if type(neuron) not in (IFNode, LIFNode, ParametricLIFNode):
        what = (
            "the reversible neuron multiplies its membrane by 1 - Y in every step, so nothing bounds it and no sum of "
            "it can be certified"
            if isinstance(neuron, ReversibleNode)
            else f"no exact form is known for {type(neuron).__name__}"
        )
        raise ExportError(f"{name}: {what}; use if, lif or plif neurons, or --numerics float")
    assert isinstance(neuron, BaseNode)
    found = copy.copy(neuron)  # not the surrogate, not the mode: they stay
    if isinstance(neuron, ParametricLIFNode):
        found = LIFNode(2.0, neuron.decay_input, surrogate=neuron.surrogate)
        found.step_mode, found.detach_reset = neuron.step_mode, neuron.detach_reset
    if isinstance(found, LIFNode):
        found.tau = 2.0 ** shift_of(neuron.params().decay)
    found.v_threshold = _on_grid(neuron.v_threshold)
    found.v_reset = None if neuron.v_reset is None else _on_grid(neuron.v_reset)
    if not found.v_threshold > 0.0:
        raise ExportError(f"{name}: a threshold of {neuron.v_threshold:g} is 0 on the grid")
    return found


def shift_of(decay: float) -> int:
    """Return s, from 1 to `LARGEST_SHIFT`, for which 1 - 2**-s lies closest to ``decay``.

    >>> shift_of(0.5), shift_of(1 / 3), shift_of(0.8)
    (1, 1, 2)
    """
    return min(range(1, LARGEST_SHIFT + 1), key=lambda s: math.fabs(decay - (1.0 - 2.0**-s)))


def _on_grid(value: float) -> float:
    return round(value * (1 << NEURON_BITS)) / (1 << NEURON_BITS)
