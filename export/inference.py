"""The inference form: a copy of a trained network that holds only what the deployed step needs.

Batch normalization is folded into the operator before it, dropout, surrogates and memory strategies are gone, every
number that training could still move is fixed. The network it is made from is not touched.
"""

import copy
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revedge.engine import (
    Branch,
    Coupling,
    Feed,
    Fork,
    Forks,
    GlobalMean,
    Residual,
    Run,
    SpikeAttention,
    Twice,
    Unit,
    Voting,
)
from revedge.engine.unit import GRID_BITS, INPUT_GRID_BITS
from revedge.errors import ExportError
from revedge.export.blocks import (
    Affine,
    Attend,
    BranchStep,
    CouplingStep,
    Doubled,
    FeedStep,
    Grid,
    ResidualStep,
    SpaceMean,
    UnitStep,
    Votes,
    cut_points,
)
from revedge.export.cells import FORCE, PLAIN, Cell, NoCell, ReversibleCell, StreamCell
from revedge.export.folding import can_fold, fold, norm_affine_of
from revedge.export.fork_steps import ForksStep, ForkStep
from revedge.models import SpikingNet, StateSpec
from revedge.neurons import BaseNode, ReversibleNode


class InferenceNet(nn.Module):
    """``forward(x, carry) -> (logits of this step, carry')``; see `inference_form`."""

    cuts: Final[list[int]]

    def __init__(self, runs: list[FeedStep | ResidualStep | CouplingStep | ForksStep]) -> None:
        super().__init__()
        self.runs = nn.ModuleList(runs)
        self.cuts = cut_points([run.takes for run in runs])

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step: ``x`` ``[B, C, H, W]``, one tensor ``[B, ...]`` per entry of ``carry``."""
        given: list[Tensor] = []
        for i, run in enumerate(self.runs):
            x, new = run(x, carry[self.cuts[i] : self.cuts[i + 1]])
            given += new
        return x, given


def inference_form(net: SpikingNet, mode: int = PLAIN) -> InferenceNet:
    """Return the deployable copy of ``net``: ``forward(x, states) -> (logits, new states)``, one time step.

    Args:
        net: a trained network, in any mode and on any device; it is not changed.
        mode: PLAIN is what is shipped; WATCH and FORCE also show spikes, see `revedge.export.cells`.

    Returns:
        A module on the CPU, in eval mode, without gradients, with batch norm folded where an operator directly
        precedes it. Its states are those of ``net.state_spec()``, in that order.

    Memory: the weights once more. Raises:
        ExportError: a normalization without running statistics, or a module this does not know.
    """
    builder = _Builder(net.state_spec(), mode)
    with torch.no_grad():
        runs = []
        for run in net.runs():
            builder.last = run is net.runs()[-1]
            runs.append(builder.run(run))
        form = InferenceNet(runs)
    builder.check_all_used()
    return form.cpu().eval().requires_grad_(False)


class _Builder:
    """Walks a network in order of execution; ``previous`` is the operator that the next value comes straight from."""

    def __init__(self, specs: list[StateSpec], mode: int) -> None:
        self.specs = specs
        self.mode = mode
        self.used = 0
        self.last = False  # the run whose result are the logits
        self.previous: list[nn.Module] = []  # [the Sequential that ends in it], or nothing

    def run(self, run: Run) -> FeedStep | ResidualStep | CouplingStep | ForksStep:
        entry = nn.Identity() if getattr(run, "on_grid", True) else Grid(GRID_BITS)
        if isinstance(run, Feed):
            branches = [b for b in run.branches if isinstance(b, Branch)]
            if len(branches) == 1:
                return FeedStep(self.branch(branches[0]), [])
            steps = [self._apart(branch) for branch in branches]
            return FeedStep(steps[0], steps[1:])
        self.previous = []
        if isinstance(run, Residual):
            steps = [self._apart(b) for b in run.branches if isinstance(b, Branch)]
            return ResidualStep(entry, steps)
        if isinstance(run, Coupling):
            pairs = [branch for pair in zip(run.f, run.g, strict=True) for branch in pair]
            steps = [self._apart(b) for b in pairs if isinstance(b, Branch)]
            norm = run.f[0].norm
            assert isinstance(norm, _BatchNorm)
            return CouplingStep(entry, steps, norm.num_features)
        if isinstance(run, Forks):
            return ForksStep([self.fork(fork) for fork in run.fork_list()])
        raise ExportError(
            f"a run of type {type(run).__name__} has no inference form; build the network from Feed, Residual, "
            "Coupling and Forks"
        )

    def fork(self, fork: Fork) -> ForkStep:
        # An operator straight before the first fork has no other reader; before the others stands a sum.
        head = self.unit(Unit() if fork.head is None else fork.head)
        steps = [self._apart(arm) for arm in fork.arm_list()]
        return ForkStep(head, steps[0], steps[1:], fork.identity)

    def _apart(self, branch: Branch) -> BranchStep:
        """A branch that reads a stream, and whose result is added to one: nothing folds across its ends."""
        self.previous = []
        step = self.branch(branch)
        self.previous = []
        return step

    def branch(self, branch: Branch) -> BranchStep:
        units = [self.unit(unit) for unit in branch.units if isinstance(unit, Unit)]
        if branch.norm is None:
            return BranchStep(units, nn.Identity())
        close = [self.norm(branch.norm), plain_copy(branch.pool), Grid(GRID_BITS)]
        self.previous = []
        if self.mode == FORCE and not self.last:
            units.append(UnitStep(_in_turn(close), StreamCell(), nn.Sequential()))
            close = []
        return BranchStep(units, _in_turn(close))

    def unit(self, unit: Unit) -> UnitStep:
        head: list[nn.Module] = [] if unit.norm is None else [self.norm(unit.norm)]
        if unit.norm is not None and isinstance(unit.neuron, ReversibleNode):
            head.append(Grid(INPUT_GRID_BITS))
        cell = self.cell(unit.neuron)
        tail = nn.Sequential(plain_copy(unit.pool), self.operator(unit))
        step = UnitStep(_in_turn(head), cell, tail)
        self.previous = [] if unit.op is None else [tail]
        return step

    def operator(self, unit: Unit) -> nn.Module:
        if not isinstance(unit.op, SpikeAttention):
            return plain_copy(unit.op)
        if unit.neuron is None or unit.pool is not None:
            raise ExportError(
                "attention is exported only where it reads a neuron's spikes; put it there"
            )
        channels, height, width = self.specs[self.used - 1].shape
        return Attend(unit.op.heads, unit.op.scale, (channels, height, width))

    def norm(self, norm: _BatchNorm) -> nn.Module:
        """Fold into the operator just before where there is one, else keep scale and shift."""
        if self.previous:
            tail = self.previous[0]
            assert isinstance(tail, nn.Sequential)
            if can_fold(tail[-1], norm):
                tail[-1] = fold(tail[-1], norm)
                return nn.Identity()
        return Affine(*norm_affine_of(norm))

    def cell(self, neuron: BaseNode | ReversibleNode | None) -> Cell | ReversibleCell | NoCell:
        if neuron is None:
            return NoCell()
        self.used += 1
        return cell_of(neuron, self.specs[self.used - 1].shape, self.mode)

    def check_all_used(self) -> None:
        if self.used != len(self.specs):
            raise ExportError(
                f"the network names {len(self.specs)} states but {self.used} neurons were found; "
                "keep all neurons inside units"
            )


def cell_of(
    neuron: BaseNode | ReversibleNode, shape: tuple[int, ...], mode: int
) -> Cell | ReversibleCell:
    """Return the cell of a neuron whose state is ``[B, *shape]``."""
    if isinstance(neuron, ReversibleNode):
        # A positive `dim` counts time, which a step does not have.
        dim = neuron.dim - 1 if neuron.dim > 0 else neuron.dim + len(shape) + 1
        return ReversibleCell(neuron.params(), dim, shape[dim - 1], mode)
    return Cell(neuron.params(), mode)


def plain_copy(module: nn.Module | None) -> nn.Module:
    """Copy a pool or operator; modules of ours inside it become ones that a file can hold."""
    if module is None:
        return nn.Identity()
    if isinstance(module, GlobalMean):
        return SpaceMean()
    if isinstance(module, Voting):
        return Votes(module.group)
    if isinstance(module, Twice):
        return Doubled()
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*(plain_copy(part) for part in module))
    return copy.deepcopy(module)


def _in_turn(modules: list[nn.Module]) -> nn.Module:
    kept = [module for module in modules if not isinstance(module, nn.Identity)]
    return kept[0] if len(kept) == 1 else nn.Sequential(*kept) if kept else nn.Identity()
