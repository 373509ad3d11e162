"""The exact inference form: every sum in it is an integer below 2**24 times a power of two.

float32 adds such numbers without rounding, in any order. So eager PyTorch at any batch and thread count, TorchScript,
onnxruntime at any optimization level and float64 give the same spikes, states and logits to the last bit. Nothing is
assumed about the input: frames are clamped to what 8 bits hold, and the certificate is computed from the weights.

The form is made of the same blocks as the float one (blocks.py). Operators hold integers and are followed by the
rounding and scaling of `Snap`; averages are sums, their division is in the next operator's weights; a leaked membrane
is rounded to a grid; one without leak stays within a limit, because nothing else bounds it for streams without end.
"""

import dataclasses

import torch
from torch import nn

from revedge.engine import (
    Branch,
    Coupling,
    Feed,
    Fork,
    Forks,
    Residual,
    Run,
    Unit,
)
from revedge.errors import ExportError
from revedge.export.blocks import (
    BranchStep,
    CouplingStep,
    FeedStep,
    Grid,
    ResidualStep,
    UnitStep,
)
from revedge.export.cells import PLAIN, Cell, NoCell
from revedge.export.exact_build import COARSEST_BITS, LayerBuilder
from revedge.export.exact_layers import InputLevels
from revedge.export.exact_ranges import Certificate, Range, TooWideError
from revedge.export.fork_steps import ForksStep, ForkStep
from revedge.export.inference import InferenceNet
from revedge.models import SpikingNet
from revedge.models.folded import (
    branches_of,
    fold_network,
)
from revedge.models.snapping import (
    FINEST_BITS,
    parts_of,
    snap_layers,
)


@dataclasses.dataclass(frozen=True, slots=True)
class ExactForm:
    """The deployable module, and the proof that its sums are exact."""

    net: InferenceNet
    certificate: Certificate


def exact_form(net: SpikingNet, input_scale: float, mode: int = PLAIN) -> ExactForm:
    """Return the exact inference form of ``net``, which is not touched.

    Args:
        net: a trained network. One that `revedge train --finish exact` has finished is on the grid already; any other
            is folded and rounded to it here, at some loss of accuracy.
        input_scale: what its 8-bit frames are multiplied with.
        mode: PLAIN is what is shipped; WATCH and FORCE also show spikes, see `revedge.export.cells`.

    Returns:
        The form, in the same shape and with the same states as `revedge.export.inference.inference_form`, and its
        certificate. Streams have 12 fractional bits, or the most that the certificate allows, at least 6.

    Raises:
        ExportError: a layer without an exact form, or sums that cannot be kept below 2**24; named.
    """
    folded = fold_network(net).cpu().eval()
    layers = {layer.op: layer for layer in snap_layers(folded, input_scale)}
    for bits in range(FINEST_BITS, COARSEST_BITS - 1, -1):
        builder = _Builder(folded, layers, input_scale, bits, mode)
        try:
            with torch.no_grad():
                found = builder.build()
        except TooWideError:
            if bits == COARSEST_BITS:
                raise
            continue
        return ExactForm(found.cpu().eval().requires_grad_(False), builder.certificate)
    raise AssertionError


class _Builder(LayerBuilder):
    """Walks over runs, branches and units in order of execution."""

    def build(self) -> InferenceNet:
        runs = []
        for run in self.net.runs():
            made = self.run(run)
            if run is self.net.stem:
                assert isinstance(made, FeedStep)
                _read_levels(made, self.input_scale)
            runs.append(made)
        return InferenceNet(runs)

    def run(self, run: Run) -> FeedStep | ResidualStep | CouplingStep | ForksStep:
        if isinstance(run, Feed):
            return self.feed(run)
        if isinstance(run, Forks):
            return ForksStep([self.fork(fork) for fork in run.fork_list()])
        entry: nn.Module = nn.Identity()
        if not getattr(run, "on_grid", True) or self.range.finest > self.stream_bits:
            entry, self.range = Grid(self.stream_bits), self.range.rounded(self.stream_bits)
        if isinstance(run, Residual):
            return self.residual(run, entry)
        if isinstance(run, Coupling):
            return self.coupling(run, entry)
        raise ExportError(f"a run of type {type(run).__name__} has no exact form")

    def feed(self, run: Feed) -> FeedStep:
        x, given = self.x, self.range
        steps, total = [], None
        branches = branches_of(run)
        for branch in branches:
            self.x, self.range = x, given
            steps.append(self.branch(branch, joins=len(branches) > 1))
            total = self.range if total is None else self.add(branch, total, self.range)
        assert total is not None
        self.range = total
        return FeedStep(steps[0], steps[1:])

    def residual(self, run: Residual, entry: nn.Module) -> ResidualStep:
        x, stream, steps = self.x, self.range, []
        for branch in branches_of(run):
            self.x, self.range = x, stream
            steps.append(self.branch(branch))
            stream = self.add(branch, stream, self.range)
        self.x, self.range = x, stream
        return ResidualStep(entry, steps)

    def coupling(self, run: Coupling, entry: nn.Module) -> CouplingStep:
        x, width = self.x, self.x.shape[1] // 2
        written, read = self.range.halves(width)
        steps = []
        for branch in branches_of(run):
            self.x, self.range = x[:, :width], read
            steps.append(self.branch(branch))
            written, read = read, self.add(branch, written, self.range)
        self.x, self.range = x, written.join(read)
        return CouplingStep(entry, steps, width)

    def fork(self, fork: Fork) -> ForkStep:
        head = self.unit(Unit() if fork.head is None else fork.head)
        x, spikes = self.x, self.range
        total = spikes if fork.identity else None
        steps = []
        for arm in fork.arm_list():
            self.x, self.range = x, spikes
            steps.append(self.branch(arm))
            total = self.range if total is None else self.add(arm, total, self.range)
        assert total is not None
        self.range = total
        return ForkStep(head, steps[0], steps[1:], fork.identity)

    def add(self, branch: Branch, a: Range, b: Range) -> Range:
        total = a.plus(b)
        self.certificate.enter(self.names[branch], "the stream", total.integers())
        return total

    def branch(self, branch: Branch, *, joins: bool = True) -> BranchStep:
        units = [self.unit(unit) for unit in branch.unit_list()]
        close = self.affine(branch.norm)
        for part in parts_of(branch.pool):
            close += self.layer(part, self.names[branch])
        if (joins or branch.on_grid) and self.range.finest > self.stream_bits:
            close.append(Grid(self.stream_bits))
            self.range = self.range.rounded(self.stream_bits)
        return BranchStep(units, _in_turn(close))

    def unit(self, unit: Unit) -> UnitStep:
        path = self.names.get(unit, "")
        head = _in_turn(self.affine(unit.norm))
        cell: Cell | NoCell = NoCell()
        if unit.neuron is not None:
            cell = self.cell(unit.neuron.params(), f"{path}.neuron")  # type: ignore[arg-type]
        tail: list[nn.Module] = []
        for part in [*parts_of(unit.pool), *parts_of(unit.op)]:
            tail += self.layer(part, path)
        return UnitStep(head, cell, nn.Sequential(*tail))


def _read_levels(stem: FeedStep, input_scale: float) -> None:
    """Let the first unit of every branch of the stem turn frames into integers."""
    for branch in [stem.first, *stem.others]:
        assert isinstance(branch, BranchStep)
        first = branch.units[0]
        assert isinstance(first, UnitStep)
        first.head = InputLevels(input_scale)


def _in_turn(modules: list[nn.Module]) -> nn.Module:
    return (
        modules[0] if len(modules) == 1 else nn.Sequential(*modules) if modules else nn.Identity()
    )
