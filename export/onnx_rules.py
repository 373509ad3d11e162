"""How each layer of an inference form is written as ONNX nodes: one rule per type. Neurons are in onnx_neurons.py."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from revedge.engine.unit import GRID_BITS
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
from revedge.export.cells import NoCell
from revedge.export.exact_layers import InputLevels, Scaled, Snap, SumOf, TwoDigits
from revedge.export.fork_steps import ForksStep, ForkStep
from revedge.export.onnx_integers import in_integers, pays, product, shape_behind
from revedge.export.onnx_step import OFFSET, StepGraph, rule
from revedge.models.snapping import FINEST_BITS

_BLOCK = 16  # channels that onnxruntime's convolution takes at a time; 8 without AVX-512
_Product = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WIDER = {3: (1, 1), 4: (1, 0)}  # columns of a plane -> columns of zeros


@rule(FeedStep, multiples=True)
def _feed(g: StepGraph, module: FeedStep, x: str) -> str:
    out = g.apply(module.first, x, "first")
    for index, branch in enumerate(module.others):
        out = _added(g, out, branch, x, f"others.{index}")
    return out


def _added(g: StepGraph, stream: str, branch: nn.Module, x: str, name: str) -> str:
    """``stream`` and what ``branch`` makes of ``x``, whose rounding leaves the opposite of the stream's offset."""
    g.wanted = -g.offsets[stream] if stream in g.offsets else None
    return g.together("Add", [stream, g.apply(branch, x, name)], "stream")


@rule(ResidualStep, multiples=True, offsets=True)
def _residual(g: StepGraph, module: ResidualStep, x: str) -> str:
    x = g.apply(module.entry, x, "entry")
    for index, branch in enumerate(module.branches):
        x = _added(g, x, branch, x, f"branches.{index}")
    return x


@rule(CouplingStep, multiples=True, offsets=True)
def _coupling(g: StepGraph, module: CouplingStep, x: str) -> str:
    x = g.apply(module.entry, x, "entry")
    halves = g.split(x, 1, module.width, module.width, label="half")
    for known in (g.times, g.offsets):
        known.update({half: known[x] for half in halves if x in known})
    written, read = halves
    for index, branch in enumerate(module.branches):
        written, read = read, _added(g, written, branch, read, f"branches.{index}")
    return g.join([written, read])


@rule(ForksStep, multiples=True)
def _forks(g: StepGraph, module: ForksStep, x: str) -> str:
    for index, fork in enumerate(module.forks):
        x = g.apply(fork, x, f"forks.{index}")
    return x


@rule(ForkStep, multiples=True)
def _fork(g: StepGraph, module: ForkStep, x: str) -> str:
    s = g.apply(module.head, x, "head")
    out = g.apply(module.first, s, "first")
    if module.identity:
        out = g.together("Add", [s, out], "sum")
    for index, arm in enumerate(module.others):
        out = _added(g, out, arm, s, f"others.{index}")
    return out


@rule(BranchStep, multiples=True)
def _branch(g: StepGraph, module: BranchStep, x: str) -> str:
    # What is rounded to a grid is an integer times its step: a power of two, which goes into the weights before it.
    larger = module.close.up if isinstance(module.close, Grid) else 1.0
    wanted, g.wanted = g.wanted or OFFSET, None
    for index, unit in enumerate(module.units):
        g.larger = larger if index + 1 == len(module.units) else 1.0
        x = g.apply(unit, x, f"units.{index}")
    g.larger = 1.0
    if isinstance(module.close, Grid) and module.close.up == 2.0**GRID_BITS and g.keeps_integers:
        g.wanted = wanted
    x = g.apply(module.close, x, "close")
    g.wanted = None
    return x


@rule(UnitStep, multiples=True)
def _unit(g: StepGraph, module: UnitStep, x: str) -> str:
    larger, g.larger = g.larger, 1.0
    for name in ("head", "cell", "tail"):
        g.columns = _columns(g, module.tail) if name == "cell" else (0, 0)
        g.larger = larger if name == "tail" else 1.0
        x = g.apply(getattr(module, name), x, name)
    return x


def _columns(g: StepGraph, tail: nn.Module) -> tuple[int, int]:
    """Columns of zeros that should stand left and right of the spikes, so that ``tail`` need not add them itself.

    onnxruntime's convolution computes three outputs of a row at a time, or six, but one by one those that need a column
    of its own zeros, and those that are left over: all of them in rows of 3 and 4. Measured at 256 channels and 4x4: a
    third of the time. What it saves in longer rows is less than the columns cost.
    """
    assert isinstance(tail, nn.Sequential)
    parts = [part for part in tail if not isinstance(part, nn.Identity)]
    conv = parts[0] if parts else None
    if not (g.keeps_integers and g.states and not g.short and isinstance(conv, nn.Conv2d)):
        return 0, 0
    shape = g.shapes[g.states[0]]
    if g.integers and isinstance(parts[-1], Snap) and pays(conv, shape):
        return 0, 0
    given = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    if given != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or len(shape) != 3 or shape[0] % _BLOCK:
        return 0, 0
    return _WIDER.get(shape[2], (0, 0))


@rule(NoCell, nn.Identity, nn.Dropout, multiples=True, offsets=True)
def _nothing(_g: StepGraph, _module: nn.Module, x: str) -> str:
    return x


@rule(nn.Sequential, multiples=True)
def _in_turn(g: StepGraph, module: nn.Sequential, x: str) -> str:
    parts, larger, g.larger = list(module), g.larger, 1.0
    written: nn.Module | None = None
    for index, part in enumerate(parts):
        if part is written:
            continue
        behind = parts[index + 1] if index + 1 < len(parts) else None
        if isinstance(behind, Snap) and in_integers(part, g, x):
            times, written = _steps_of(behind) if g.keeps_integers else 1.0, behind
            with g.within(str(index)):
                x = product(g, part, behind, x, times)
            g.times[x] = times
            continue
        times, factor = 1.0, torch.ones(1)
        if behind is None:
            times, factor = larger, factor * larger
        elif g.keeps_integers and isinstance(behind, Snap):
            times = _steps_of(behind)
            factor = times * behind.up * behind.scale
        if times != 1.0 and isinstance(part, _PRODUCTS):
            x = g.apply(_times(part, factor), x, str(index))
            g.times[x] = times
        else:
            x = g.apply(part, x, str(index))
    return x


def _steps_of(snap: Snap) -> float:
    """Values behind are multiples of one over this: 2^12, so that they can be added as integers, or more if need be."""
    return max(2.0**FINEST_BITS, 1.0 / float(snap.scale.min()))


def _times(op: _Product, factor: Tensor) -> _Product:
    """An operator whose outputs are powers of two times larger, channel by channel; so are its weights."""
    made = copy.deepcopy(op)
    with torch.no_grad():
        made.weight.mul_(factor.reshape([-1] + [1] * (op.weight.dim() - 1)))
        if made.bias is not None:
            made.bias.mul_(factor)
    return made


@rule(Affine)
def _affine(g: StepGraph, module: Affine, x: str) -> str:
    shape = [-1] + [1] * (g.ranks[x] - 2)
    scale = g.weight("scale", module.scale.reshape(shape))
    shift = g.weight("shift", module.shift.reshape(shape))
    return g.op("Add", [g.op("Mul", [x, scale], "scaled"), shift], "norm")


@rule(Grid, multiples=True)
def _grid(g: StepGraph, module: Grid, x: str) -> str:
    # An integer on this grid already, or what an operator gave: times a power of two, which goes into its weights.
    times = module.up / g.times.get(x, 1.0)
    up = x if times == 1.0 else g.op("Mul", [x, g.scalar(times)], "up")
    n = g.op("Round", [up]) if g.wanted is None else g.rounded(up, g.wanted)
    if g.keeps_integers:
        g.times[n] = module.up
        return n
    return g.op("Mul", [n, g.scalar(module.down)], "grid")


@rule(InputLevels)
def _input_levels(g: StepGraph, module: InputLevels, x: str) -> str:
    if module.scaled:
        x = g.op("Mul", [x, g.scalar(module.inverse)], "unscaled")
    return g.op("Clip", [g.op("Round", [x]), g.scalar(0.0), g.scalar(module.top)], "levels")


@rule(SumOf)
def _sum_of(g: StepGraph, module: SumOf, x: str) -> str:
    mean = g.apply(module.pool, x, "pool")
    x = g.op("Round", [g.op("Mul", [mean, g.scalar(module.up)], "count")], "sum")
    return g.op("Mul", [x, g.scalar(module.down)], "sum") if module.fine else x


@rule(Snap, multiples=True)
def _snap(g: StepGraph, module: Snap, x: str) -> str:
    if x in g.times:  # the scale is in the weights already
        n = g.op("Round", [x], "value")
        g.times[n] = g.times[x]
        return n
    scale = g.weight("scale", module.scale.reshape([-1] + [1] * (g.ranks[x] - 2)))
    if module.fine:
        x = g.op("Mul", [x, g.scalar(module.up)], "up")
    return g.op("Mul", [g.op("Round", [x]), scale], "value")


@rule(TwoDigits)
def _two_digits(g: StepGraph, module: TwoDigits, x: str) -> str:
    n = g.op("Round", [g.op("Mul", [x, g.scalar(module.up)], "up")], "integer")
    upper = g.op("Round", [g.op("Mul", [n, g.scalar(module.down)], "down")], "upper")
    carried = g.op("Mul", [upper, g.scalar(module.base)], "carried")
    lower = g.op("Sub", [n, carried], "lower")
    high = g.op("Round", [g.apply(module.op, upper, "op")], "high")
    low = g.op("Round", [g.apply(module.op, lower, "op")], "low")
    low = g.op("Add", [low, g.weight("bias", module.bias)], "low")
    y = g.op("Add", [g.op("Mul", [high, g.scalar(module.base)], "high"), low], "sum")
    return g.op("Mul", [y, g.weight("scale", module.scale)], "value")


@rule(Scaled)
def _scaled(g: StepGraph, module: Scaled, x: str) -> str:
    return g.op("Mul", [x, g.scalar(module.factor)], "scaled")


@rule(SpaceMean)
def _space_mean(g: StepGraph, _module: SpaceMean, x: str) -> str:
    return g.op("Flatten", [g.op("GlobalAveragePool", [x])], "mean", rank=2, axis=1)


@rule(Attend)
def _attend(g: StepGraph, module: Attend, x: str) -> str:
    _, heads, width, tokens = module.split
    parts = g.split(x, 1, *[heads * width] * 3, label="qkv")
    shape = g.sizes(0, heads, width, tokens)
    q, k, v = (g.op("Reshape", [part, shape], "per_head", rank=4) for part in parts)
    turned = g.op("Transpose", [k], "k_turned", perm=[0, 1, 3, 2])
    seen = g.op("MatMul", [g.op("MatMul", [v, turned], "v_k"), q], "seen")
    seen = g.op("Mul", [seen, g.scalar(module.scale)], "scaled")
    return g.op("Reshape", [seen, g.sizes(0, *module.join)], "attended", rank=4)


@rule(Votes)
def _votes(g: StepGraph, module: Votes, x: str) -> str:
    grouped = g.op("Reshape", [x, g.sizes(0, -1, module.group)], "votes", rank=3)
    return g.reduce("ReduceMean", grouped, 2)


@rule(Doubled)
def _doubled(g: StepGraph, _module: Doubled, x: str) -> str:
    return g.op("Concat", [x, x], axis=1)


@rule(nn.Flatten)
def _flatten(g: StepGraph, module: nn.Flatten, x: str) -> str:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise ExportError(f"{g.path}: only nn.Flatten() of all but the batch can be exported")
    out = g.op("Flatten", [x], rank=2, axis=1)
    if x in g.spiking:
        g.spiking[out] = shape_behind(module, g.spiking[x])
    return out


@rule(nn.Linear)
def _linear(g: StepGraph, module: nn.Linear, x: str) -> str:
    weight = g.weight("weight", module.weight)
    bias = [] if module.bias is None else [g.weight("bias", module.bias)]
    if g.ranks[x] == 2:
        return g.op("Gemm", [x, weight, *bias], transB=1)
    turned = g.op("Transpose", [weight], "turned", perm=[1, 0])
    product = g.op("MatMul", [x, turned])
    return g.op("Add", [product, *bias], "linear") if bias else product


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv(g: StepGraph, module: nn.Conv2d, x: str) -> str:
    if module.padding_mode != "zeros":
        raise ExportError(f"{g.path}: padding_mode={module.padding_mode!r} cannot be exported")
    # Both ends of each dimension, the last dimension first; ONNX wants all begins, then all ends.
    pairs = list(module._reversed_padding_repeated_twice)
    pads = pairs[0::2][::-1] + pairs[1::2][::-1]
    for side, there in zip((1, 3), g.wider.get(x, ()), strict=False):
        pads[side] -= there
    weight = g.weight("weight", module.weight)
    bias = [] if module.bias is None else [g.weight("bias", module.bias)]
    given: dict[str, Any] = {
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "group": module.groups,
    }
    given = {key: value for key, value in given.items() if value not in (1, [1] * len(pairs[::2]))}
    kernel = list(module.kernel_size)
    return g.op("Conv", [x, weight, *bias], kernel_shape=kernel, pads=pads, **given)


@rule(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
def _pool(g: StepGraph, module: Any, x: str) -> str:
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d) and x in g.spiking:
        shape = g.spiking.pop(x)
        out = _pool(g, module, x)
        g.spiking |= {x: shape, out: shape_behind(module, shape)}
        return out
    if (
        x in g.parts
    ):  # each by itself: onnxruntime joins what is smaller then, in the layout of its convolutions
        return g.join([_pool(g, module, part) for part in g.parts[x]])
    dims = g.ranks[x] - 2
    options: dict[str, Any] = {
        "kernel_shape": _each(module.kernel_size, dims),
        "strides": _each(module.stride, dims),
        "pads": _each(module.padding, dims) * 2,
        "ceil_mode": int(module.ceil_mode),
    }
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d):
        return g.op("MaxPool", [x], **options, dilations=_each(module.dilation, dims))
    if getattr(module, "divisor_override", None) is not None:
        raise ExportError(f"{g.path}: an average pool with divisor_override cannot be exported")
    return g.op("AveragePool", [x], **options, count_include_pad=int(module.count_include_pad))


@rule(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
def _adaptive_pool(g: StepGraph, module: Any, x: str) -> str:
    if _each(module.output_size, 2) != [1, 1]:
        raise ExportError(f"{g.path}: an adaptive pool can be exported to size 1 only")
    average = isinstance(module, nn.AdaptiveAvgPool2d)
    return g.op("GlobalAveragePool" if average else "GlobalMaxPool", [x])


def _each(value: int | tuple[int, ...], dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value)
