"""Weights of a folded network on power-of-two grids of 8-bit integers, one grid per output channel.

    w[c] * factor = n * 2**-g[c],   n an integer from -127 to 127,   bias the same with n of any size

``factor`` is what the deployed network does not divide by: it adds up the windows of average pools, and takes 8-bit
frames as they are, and both divisions are part of the weights. So every value in front of an operator is an integer
times a power of two, and so is every sum behind it.

The grid is a function of the weights: the finest that holds the largest weight of the channel. Weights that lie on it
are given back unchanged, so a network on the grid needs nothing beside its weights to say so.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

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
    SpikeAttention,
    Twice,
    Unit,
    Voting,
)
from revedge.errors import ExportError
from revedge.models.folded import OPERATORS, FixedNorm, Operator, branches_of
from revedge.models.net import SpikingNet

LARGEST_LEVEL = 127
# Of a scale that multiplies a stream: its products must fit beside the stream's own bits.
LARGEST_NORM_LEVEL = 31
FINEST_BITS = 12  # no grid of values is finer than 2**-12


@dataclass(frozen=True, slots=True, eq=False)
class SnapLayer:
    """One operator of a folded network, or a normalization that could not be folded.

    Attributes:
        path: its place in the network.
        op: the operator; its ``weight`` and ``bias`` are what training moves.
        weight_factor: of the weights, see above.
        bias_factor: of the bias: only what divides the operator's output.
    """

    path: str
    op: Operator | FixedNorm
    weight_factor: float
    bias_factor: float

    @property
    def weight(self) -> Tensor:
        """Weights of the operator."""
        return self.op.weight

    @property
    def bias(self) -> Tensor:
        """Bias of the operator; a folded network has one everywhere."""
        assert self.op.bias is not None
        return self.op.bias

    @property
    def largest_level(self) -> int:
        """Of the integers."""
        return LARGEST_NORM_LEVEL if isinstance(self.op, FixedNorm) else LARGEST_LEVEL

    @property
    def finest_bits(self) -> int:
        """Of the grid: `FINEST_BITS` for values, and finer where the weights carry a division by a window."""
        spare = self.bias_factor / self.weight_factor
        return FINEST_BITS + max(0, math.ceil(math.log2(spare) - 1e-6))


@dataclass(frozen=True, slots=True)
class Levels:
    """Integers of one operator: weight ``[C, ...]``, bias ``[C]`` and grid bits ``[C]``, all float64."""

    weight: Tensor
    bias: Tensor
    bits: Tensor


def snap_layers(net: SpikingNet, input_scale: float) -> list[SnapLayer]:
    """Return the operators of a folded network in order of execution.

    Args:
        net: from `revedge.models.folded.fold_network`.
        input_scale: what 8-bit frames are multiplied with.

    Raises:
        ExportError: a pool or operator without an exact form; named.
    """
    if not input_scale > 0.0:
        raise ExportError(f"frames are scaled by {input_scale}, which has no exact form")
    return list(_Layers(net, input_scale).layers())


def levels_of(layer: SnapLayer, weight: Tensor, bias: Tensor) -> Levels:
    """Return the integers that lie closest to ``weight`` and ``bias``, half to even."""
    scaled = weight.detach().double() * layer.weight_factor
    largest = scaled.abs().reshape(len(scaled), -1).amax(1)
    # A little more than the largest level: weights on the grid may lie a rounding error beside it.
    bits = torch.floor(torch.log2((layer.largest_level + 0.49) / largest.clamp(min=2.0**-100)))
    bits = bits.clamp(max=layer.finest_bits)
    up = torch.exp2(bits)
    shape = [-1] + [1] * (weight.dim() - 1)
    n = torch.round(scaled * up.reshape(shape)).clamp(-layer.largest_level, layer.largest_level)
    return Levels(n, torch.round(bias.detach().double() * layer.bias_factor * up), bits)


@torch.no_grad()
def snap(layer: SnapLayer, weight: Tensor, bias: Tensor) -> None:
    """Write the closest point of the grid to (``weight``, ``bias``) into the operator of ``layer``."""
    found = levels_of(layer, weight, bias)
    down = torch.exp2(-found.bits)
    shape = [-1] + [1] * (weight.dim() - 1)
    layer.weight.copy_(found.weight * down.reshape(shape) / layer.weight_factor)
    layer.bias.copy_(found.bias * down / layer.bias_factor)


def parts_of(module: nn.Module | None) -> list[nn.Module]:
    """Return the modules of a tail in turn, those inside a Sequential too."""
    if module is None or isinstance(module, nn.Identity | nn.Dropout):
        return []
    if isinstance(module, nn.Sequential):
        return [part for child in module for part in parts_of(child)]
    return [module]


def window_of(module: nn.Module, x: Tensor, path: str) -> int:
    """Return how many values each output of a pool is the mean of; 1 if it is no average.

    Raises:
        ExportError: a module that is neither pool, flattening nor operator, or whose windows differ in size.
    """
    if isinstance(module, GlobalMean) or type(module) is nn.AdaptiveAvgPool2d:
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            raise ExportError(f"{path}: an adaptive average pool has an exact form for size 1 only")
        return x.shape[-1] * x.shape[-2]
    if type(module) in (nn.AvgPool1d, nn.AvgPool2d):
        assert isinstance(module, nn.AvgPool1d | nn.AvgPool2d)
        padded = module.padding not in (0, (0,), (0, 0)) and not module.count_include_pad
        if padded or module.ceil_mode or getattr(module, "divisor_override", None) is not None:
            raise ExportError(
                f"{path}: an average pool whose windows differ in size has no exact form; use count_include_pad=True, "
                "ceil_mode=False and no divisor_override"
            )
        size = module.kernel_size
        dims = 1 if isinstance(module, nn.AvgPool1d) else 2
        return math.prod(size if isinstance(size, tuple) else [size] * dims)
    if type(module) in _WITHOUT_MEAN:
        return 1
    raise ExportError(
        f"{path}: no exact form is known for a layer of type {type(module).__name__}; use convolutions, linear "
        "layers and pools, or --numerics float"
    )


_WITHOUT_MEAN = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    SpikeAttention,
    Twice,
    Voting,  # at the end its votes are counted, and divided by a power of two
    *OPERATORS,
)


class _Layers:
    """Sends an empty batch through, for the sizes of pools; ``factor`` waits for the next operator."""

    def __init__(self, net: SpikingNet, input_scale: float) -> None:
        self.net = net
        self.names = {module: name for name, module in net.named_modules()}
        self.factor = self.input_scale = input_scale
        parameter = next(net.parameters())
        self.x = torch.empty((0, *net.in_shape), device=parameter.device, dtype=parameter.dtype)

    def layers(self) -> Iterator[SnapLayer]:
        for run in self.net.runs():
            factor = self.input_scale if run is self.net.stem else 1.0
            if isinstance(run, Forks):
                for fork in run.fork_list():
                    yield from self.fork(fork)
                continue
            x = self.x[:, : self.x.shape[1] // 2] if isinstance(run, Coupling) else self.x
            whole = self.x
            for branch in branches_of(run):
                self.x, self.factor = x, factor
                yield from self.branch(branch)
            self.x = self.x if isinstance(run, Feed) else whole
            assert isinstance(run, Coupling | Feed | Residual)

    def fork(self, fork: Fork) -> Iterator[SnapLayer]:
        if fork.head is not None:
            yield from self.unit(fork.head)
        x = self.x
        for arm in fork.arm_list():
            self.x = x
            yield from self.branch(arm)

    def unit(self, unit: Unit) -> Iterator[SnapLayer]:
        path = self.names[unit]
        if isinstance(unit.norm, FixedNorm):
            yield self.affine(unit.norm)
        if unit.neuron is not None:
            self.require_factor(path, "a neuron")
        for part in [*parts_of(unit.pool), *parts_of(unit.op)]:
            self.factor /= window_of(part, self.x, path)
            if isinstance(part, OPERATORS):
                yield SnapLayer(self.names[part], part, self.factor, 1.0)
                self.factor = 1.0
            self.move(part)

    def branch(self, branch: Branch) -> Iterator[SnapLayer]:
        found = [layer for unit in branch.unit_list() for layer in self.unit(unit)]
        if isinstance(branch.norm, FixedNorm) and branch.norm.learns:
            found.append(self.affine(branch.norm))
        for part in parts_of(branch.pool):
            window = window_of(part, self.x, self.names[branch])
            self.move(part)
            if window == 1:
                continue
            last = found.pop() if found else None
            if last is None or last.op not in (branch.unit_list()[-1].op, branch.norm):
                self.require_factor(self.names[branch], "the end of a branch", 1.0 / window)
                continue
            weight, bias = last.weight_factor / window, last.bias_factor / window
            found.append(SnapLayer(last.path, last.op, weight, bias))
        self.require_factor(self.names[branch], "the end of a branch")
        yield from found

    def affine(self, norm: FixedNorm) -> SnapLayer:
        factor, self.factor = self.factor, 1.0
        return SnapLayer(self.names[norm], norm, factor, 1.0)

    def move(self, part: nn.Module) -> None:
        with torch.no_grad():
            self.x = part(self.x)

    def require_factor(self, path: str, what: str, factor: float | None = None) -> None:
        value = self.factor if factor is None else factor
        if value != 1.0:
            raise ExportError(
                f"{path}: a mean over {1 / value:g} values, or frames in such steps, reaches {what} without an "
                "operator in between that could take the division; put a convolution or linear layer there"
            )
