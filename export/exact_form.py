"""The exact inference form: every sum in it is an integer below 2**24 times a power of two.

float32 adds such numbers without rounding, in any order. So eager PyTorch at any batch and thread count, TorchScript,
onnxruntime at any optimization level and float64 give the same spikes, states and logits to the last bit. Nothing is
assumed about the input: frames are clamped to what 8 bits hold, and the certificate is computed from the weights.

The form is made of the same blocks as the float one (blocks.py). Operators hold integers and are followed by the
rounding and scaling of `Snap`; averages are sums, their division is in the next operator's weights; a leaked membrane
is rounded to a grid; one without leak stays within a limit, because nothing else bounds it for streams without end.
"""

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn

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
)
from revedge.export.cells import PLAIN, Cell, NoCell
from revedge.export.exact_layers import DIGIT, InputLevels, Scaled, Snap, SumOf, TwoDigits
from revedge.export.exact_ranges import LIMIT, Certificate, Range, TooWideError
from revedge.export.fork_steps import ForksStep, ForkStep
from revedge.export.inference import InferenceNet, plain_copy
from revedge.kernels.params import NeuronParams
from revedge.models import SpikingNet
from revedge.models.folded import (
    NEURON_BITS,
    FixedNorm,
    Operator,
    branches_of,
    fold_network,
)
from revedge.models.snapping import (
    FINEST_BITS,
    Levels,
    SnapLayer,
    levels_of,
    parts_of,
    snap_layers,
    window_of,
)

_COARSEST_BITS = 6
_LARGEST_INPUT = 255.0
_LARGEST_DIGITS = DIGIT * DIGIT // 2 - 1  # whose upper digit is 128


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
    for bits in range(FINEST_BITS, _COARSEST_BITS - 1, -1):
        builder = _Builder(folded, layers, input_scale, bits, mode)
        try:
            with torch.no_grad():
                found = builder.build()
        except TooWideError:
            if bits == _COARSEST_BITS:
                raise
            continue
        return ExactForm(found.cpu().eval().requires_grad_(False), builder.certificate)
    raise AssertionError


class _Builder:
    """Walks in order of execution; ``x`` is an empty batch for sizes, ``range`` what its values can be."""

    def __init__(
        self,
        net: SpikingNet,
        layers: dict[Operator | FixedNorm, SnapLayer],
        input_scale: float,
        stream_bits: int,
        mode: int,
    ) -> None:
        self.net = net
        self.layers: dict[nn.Module, SnapLayer] = dict(layers.items())
        self.input_scale = input_scale
        self.stream_bits = stream_bits
        self.mode = mode
        self.certificate = Certificate(stream_bits)
        self.names = {module: name for name, module in net.named_modules()}
        self.x = torch.empty((0, *net.in_shape))
        self.range = Range.of(net.in_shape[0], _LARGEST_INPUT)
        last = net.head.branch_list()[-1]
        parts = parts_of(last.unit_list()[-1].op)
        self.readout = parts[-1] if parts and last.norm is None else None

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

    def affine(self, norm: nn.Module | None) -> list[nn.Module]:
        """A normalization that could not be folded: two exact operations, and a rounding where they are too fine."""
        layer = None if norm is None else self.layers.get(norm)
        if layer is None:
            return []
        levels, given = levels_of(layer, layer.weight, layer.bias), self.range
        scale = torch.exp2(-levels.bits)
        sums = (levels.weight.abs() * given.bound + levels.bias.abs()) * torch.exp2(given.bits)
        self.certificate.enter(layer.path, "a product and a sum", float(sums.max()))
        made: list[nn.Module] = [
            Affine((levels.weight * scale).float(), (levels.bias * scale).float())
        ]
        bound = (levels.weight.abs() * given.bound + levels.bias.abs()) * scale
        self.range = Range(bound, levels.bits + given.bits)
        if self.range.finest > FINEST_BITS:
            made.append(Grid(FINEST_BITS))
            self.range = self.range.rounded(FINEST_BITS)
        return made

    def layer(self, module: nn.Module, path: str) -> list[nn.Module]:
        """A pool or operator; moves ``x`` and ``range`` on."""
        if module in self.layers:
            return self.operator(self.layers[module])
        if isinstance(module, SpikeAttention):
            return [self.attention(module, path)]
        window = window_of(module, self.x, path)
        inside = math.prod(self.x.shape[2:])
        self.x = module(self.x)
        if isinstance(module, Voting):
            return self.votes(module, path)
        if isinstance(module, Twice):
            self.range = self.range.join(self.range)
            return [Doubled()]
        if isinstance(module, nn.Flatten):
            self.range = self.range.spread(inside)
        if window == 1:
            return [plain_copy(module)]
        self.range = self.range.scaled(window)
        # Times 4: a mean times its count is off by less than half a step only below 2**22.
        self.certificate.enter(path, "4 times a window", 4 * self.range.integers())
        pool = SpaceMean() if isinstance(module, GlobalMean) else copy.deepcopy(module)
        return [SumOf(pool, window, self.range.finest)]

    def attention(self, module: SpikeAttention, path: str) -> nn.Module:
        shift = -math.log2(module.scale)
        channels, height, width = self.x.shape[1:]
        if shift != round(shift) or self.range.finest or float(self.range.bound.max()) != 1.0:
            raise ExportError(
                f"{path}: attention is exact between spikes, with a scale that is a power of two"
            )
        largest = height * width * (channels // 3 // module.heads)
        self.certificate.enter(path, "a sum of attention", largest)
        self.x = module(self.x)
        self.range = Range.of(channels // 3, largest).scaled(shift=round(shift))
        return Attend(module.heads, module.scale, (channels, height, width))

    def votes(self, module: Voting, path: str) -> list[nn.Module]:
        """Votes are counted and divided by the power of two next to their number, so logits keep their order."""
        shift = round(math.log2(module.group))
        self.range = Range.of(self.x.shape[1], module.group).scaled(shift=shift)
        self.certificate.enter(path, "4 times a vote", 4 * module.group)
        return [SumOf(Votes(module.group), module.group, 0), Scaled(2.0**-shift)]

    def operator(self, layer: SnapLayer) -> list[nn.Module]:
        op, given = layer.op, self.range
        assert not isinstance(op, FixedNorm)
        assert op.bias is not None
        levels = levels_of(layer, op.weight, op.bias)
        sums = _weighted(op, levels.weight.abs(), given.bound) + levels.bias.abs()
        largest = float(sums.max()) * 2.0**given.finest
        if largest >= LIMIT and op is self.readout and isinstance(op, nn.Linear):
            return self.two_digits(layer.path, op, levels)
        self.certificate.enter(layer.path, "a sum of products", largest)
        made = copy.deepcopy(op)
        made.weight = nn.Parameter(levels.weight.float(), requires_grad=False)
        made.bias = nn.Parameter(levels.bias.float(), requires_grad=False)
        self.x = op(self.x)
        scale = torch.exp2(-levels.bits)
        self.range = Range(sums * scale, levels.bits + given.finest)
        return [made, Snap((scale * 2.0**-given.finest).float(), given.finest)]

    def two_digits(self, path: str, op: nn.Linear, levels: Levels) -> list[nn.Module]:
        """A readout whose sums do not fit; its input is rounded to 16 bits."""
        given, made = self.range, list[nn.Module]()
        bits = given.finest
        while given.integers() > _LARGEST_DIGITS:
            bits -= 1
            given = self.range.rounded(bits)
        if bits < self.range.finest:
            made.append(Grid(bits))
        largest = levels.weight.abs().sum(1) * (DIGIT // 2)
        bias = torch.round(levels.bias * 2.0**bits)
        self.certificate.enter(path, "a sum of upper digits", float(largest.max()))
        self.certificate.enter(
            path, "a sum of lower digits and bias", float((largest + bias.abs()).max())
        )
        integers = nn.Linear(op.in_features, op.out_features, bias=False)
        integers.weight = nn.Parameter(levels.weight.float(), requires_grad=False)
        scale = torch.exp2(-levels.bits - bits).float()
        self.x = op(self.x)
        sums = _weighted(op, levels.weight.abs(), given.bound) + levels.bias.abs()
        self.range = Range(sums * torch.exp2(-levels.bits), levels.bits + bits)
        return [*made, TwoDigits(integers, bias.float(), scale, bits)]

    def cell(self, params: NeuronParams, path: str) -> Cell:
        drive = self.range
        if params.gain != 1.0:
            drive = drive.scaled(shift=round(-math.log2(params.gain)))
        bits = drive.bits
        if params.bias or params.v_reset or params.v_reset is None:
            bits = bits.clamp(min=NEURON_BITS)
        if params.bias:
            bits = bits.clamp(min=NEURON_BITS + _shift(params.decay))
        rest = params.v_threshold + abs(params.v_initial)
        channels = len(bits)
        self.range = Range.of(channels, 1.0)
        if params.decay == 1.0:
            finest = int(bits.max())
            limit = 2.0 ** (23 - finest)
            largest = (limit + rest + float(drive.bound.max())) * 2.0**finest
            self.certificate.enter(path, "the membrane", largest)
            return Cell(params, self.mode, limit=limit)
        shift = _shift(params.decay)
        leak_bits = min(int(bits.max()), FINEST_BITS + shift)
        while True:
            # 2**shift times the drive is where charge and leak balance; each rounding adds half a step.
            bound = (drive.bound + abs(params.bias) + 2.0 ** -(leak_bits + 1)) * 2.0**shift + rest
            largest = Range(bound, bits.clamp(min=leak_bits)).integers(shift)
            if largest < LIMIT or leak_bits <= _COARSEST_BITS:
                break
            leak_bits -= 1
        self.certificate.enter(path, "the membrane times its leak", largest)
        return Cell(params, self.mode, leak_bits=leak_bits)


def _shift(decay: float) -> int:
    return round(-math.log2(1.0 - decay))


def _weighted(op: Operator, levels: Tensor, bound: Tensor) -> Tensor:
    """Return sum over inputs of ``levels`` times the input's bound, per output channel."""
    per_input = levels.flatten(2).sum(2) if levels.dim() > 2 else levels
    groups = 1 if isinstance(op, nn.Linear) else op.groups
    given = bound.reshape(groups, -1).repeat_interleave(len(levels) // groups, 0)
    return (per_input * given).sum(1)


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
