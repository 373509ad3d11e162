"""The layers of an exact form: what each does to the range of its values, and what it enters into the certificate."""

import copy
import math

import torch
from torch import Tensor, nn

from revedge.engine import GlobalMean, SpikeAttention, Twice, Voting
from revedge.errors import ExportError
from revedge.export.blocks import Affine, Attend, Doubled, Grid, SpaceMean, Votes
from revedge.export.cells import Cell
from revedge.export.exact_layers import DIGIT, Scaled, Snap, SumOf, TwoDigits
from revedge.export.exact_ranges import LIMIT, Certificate, Range
from revedge.export.inference import plain_copy
from revedge.kernels.params import NeuronParams
from revedge.models import SpikingNet
from revedge.models.folded import NEURON_BITS, FixedNorm, Operator
from revedge.models.snapping import FINEST_BITS, Levels, SnapLayer, levels_of, parts_of, window_of

COARSEST_BITS = 6
_LARGEST_INPUT = 255.0
_LARGEST_DIGITS = DIGIT * DIGIT // 2 - 1  # whose upper digit is 128


class LayerBuilder:
    """Goes on layer by layer; ``x`` is an empty batch for sizes, ``range`` what its values can be.

    Args:
        net: folded (`revedge.models.folded.fold_network`).
        layers: what of it is snapped to a grid.
        input_scale: what its 8-bit frames are multiplied with.
        stream_bits: of the grid of streams.
        mode: of the cells.

    Attributes:
        certificate: of the layers built so far.
    """

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
            return self._operator(self.layers[module])
        if isinstance(module, SpikeAttention):
            return [self._attention(module, path)]
        window = window_of(module, self.x, path)
        inside = math.prod(self.x.shape[2:])
        self.x = module(self.x)
        if isinstance(module, Voting):
            return self._votes(module, path)
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

    def _attention(self, module: SpikeAttention, path: str) -> nn.Module:
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

    def _votes(self, module: Voting, path: str) -> list[nn.Module]:
        """Votes are counted and divided by the power of two next to their number, so logits keep their order."""
        shift = round(math.log2(module.group))
        self.range = Range.of(self.x.shape[1], module.group).scaled(shift=shift)
        self.certificate.enter(path, "4 times a vote", 4 * module.group)
        return [SumOf(Votes(module.group), module.group, 0), Scaled(2.0**-shift)]

    def _operator(self, layer: SnapLayer) -> list[nn.Module]:
        op, given = layer.op, self.range
        assert not isinstance(op, FixedNorm)
        assert op.bias is not None
        levels = levels_of(layer, op.weight, op.bias)
        sums = _weighted(op, levels.weight.abs(), given.bound) + levels.bias.abs()
        largest = float(sums.max()) * 2.0**given.finest
        if largest >= LIMIT and op is self.readout and isinstance(op, nn.Linear):
            return self._two_digits(layer.path, op, levels)
        self.certificate.enter(layer.path, "a sum of products", largest)
        made = copy.deepcopy(op)
        made.weight = nn.Parameter(levels.weight.float(), requires_grad=False)
        made.bias = nn.Parameter(levels.bias.float(), requires_grad=False)
        self.x = op(self.x)
        scale = torch.exp2(-levels.bits)
        self.range = Range(sums * scale, levels.bits + given.finest)
        return [made, Snap((scale * 2.0**-given.finest).float(), given.finest)]

    def _two_digits(self, path: str, op: nn.Linear, levels: Levels) -> list[nn.Module]:
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
        """A neuron; without a leak its membrane gets a limit, with one a grid."""
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
            # At least that of streams: neurons that read all of a stream, or a part of it, are the same then.
            finest = max(int(bits.max()), self.stream_bits)
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
            if largest < LIMIT or leak_bits <= COARSEST_BITS:
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
