"""How layers without states are written as ONNX nodes: operators, pools, attention."""

from typing import Any

from torch import nn

from revedge.errors import ExportError
from revedge.export.blocks import Affine, Attend, Doubled, SpaceMean, Votes
from revedge.export.onnx_integers import shape_behind
from revedge.export.onnx_step import StepGraph, rule


@rule(Affine)
def _affine(g: StepGraph, module: Affine, x: str) -> str:
    shape = [-1] + [1] * (g.ranks[x] - 2)
    scale = g.weight("scale", module.scale.reshape(shape))
    shift = g.weight("shift", module.shift.reshape(shape))
    return g.op("Add", [g.op("Mul", [x, scale], "scaled"), shift], "norm")


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
    given = _told(
        pads=pads,
        strides=list(module.stride),
        dilations=list(module.dilation),
        group=module.groups,
    )
    kernel = list(module.kernel_size)
    return g.op("Conv", [x, weight, *bias], kernel_shape=kernel, **given)


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
    kernel = _each(module.kernel_size, dims)
    given = _told(
        strides=_each(module.stride, dims),
        pads=_each(module.padding, dims) * 2,
        ceil_mode=int(module.ceil_mode),
    )
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d):
        given |= _told(dilations=_each(module.dilation, dims))
        return g.op("MaxPool", [x], kernel_shape=kernel, **given)
    if getattr(module, "divisor_override", None) is not None:
        raise ExportError(f"{g.path}: an average pool with divisor_override cannot be exported")
    if given.keys() & {"pads", "ceil_mode"}:
        given |= _told(count_include_pad=int(module.count_include_pad))
    return g.op("AveragePool", [x], kernel_shape=kernel, **given)


@rule(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
def _adaptive_pool(g: StepGraph, module: Any, x: str) -> str:
    if _each(module.output_size, 2) != [1, 1]:
        raise ExportError(f"{g.path}: an adaptive pool can be exported to size 1 only")
    average = isinstance(module, nn.AdaptiveAvgPool2d)
    return g.op("GlobalAveragePool" if average else "GlobalMaxPool", [x])


_WITHOUT = {
    "pads": 0,
    "ceil_mode": 0,
    "count_include_pad": 0,
    "strides": 1,
    "dilations": 1,
    "group": 1,
}


def _told(**attributes: int | list[int]) -> dict[str, Any]:
    """Attributes that say something else than their absence does: an unrolled file has them in every step."""

    def said(name: str, value: int | list[int]) -> bool:
        return any(one != _WITHOUT[name] for one in (value if isinstance(value, list) else [value]))

    return {name: value for name, value in attributes.items() if said(name, value)}


def _each(value: int | tuple[int, ...], dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value)
