"""Calls of the C library: batch norm and neuron in one."""

import torch
from torch import Tensor

from revedge.kernels._shapes import check_range, check_shape, check_slab
from revedge.kernels.native._call import Floats, call, planes
from revedge.kernels.native.neuron import leak_like, spikes_like


def norm_neuron_forward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    p: Floats,
    pack: bool,
    state: bool,
) -> tuple[Tensor, Tensor]:
    """See reference.norm_neuron_forward."""
    check_shape("v0", v0, y.shape[1:])
    bits, s = spikes_like(y, pack)
    v = y.new_empty(y.shape[1:] if state else 0)
    _norm_neuron_forward(y, scale, shift, v0, s, bits, v, p, y.shape[2], 0)
    return (bits if pack else s), v


def norm_neuron_pack_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    p: Floats,
    bits: Tensor,
    channels: int,
    first: int,
) -> None:
    """See reference.norm_neuron_pack_."""
    check_range("bits", channels, y.shape[2], first)
    _norm_neuron_forward(y, scale, shift, None, None, bits, None, p, channels, first)


def _norm_neuron_forward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    s: Tensor | None,
    bits: Tensor | None,
    v: Tensor | None,
    p: Floats,
    channels: int,
    first: int,
) -> None:
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_shape(name, tensor, y.shape[2:3])
    _, count, size = planes(y, 2)
    time, batch = y.shape[:2]
    sizes = [time, batch, count, size, channels, first]
    call("norm_neuron_forward", [y, scale, shift, v0, s, bits, v], sizes, p)


def norm_neuron_backward_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    p: Floats,
    first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.norm_neuron_backward_."""
    channels = check_slab("g_s", g, y, 2, first)
    norm = {"mean": mean, "inv_std": inv_std, "weight": weight, "bias": bias}
    for name, tensor in norm.items():
        check_shape(name, tensor, y.shape[2:3])
    g_weight, g_bias = torch.empty_like(weight), torch.empty_like(weight)
    g_leak = leak_like(y[0], p)
    scale = weight * inv_std
    shift = bias - mean * scale
    _, count, size = planes(y, 2)
    sizes = [*y.shape[:2], count, size, channels, first]
    tensors = [y, g, scale, shift, mean, inv_std, weight, g_weight, g_bias, g_leak]
    call("norm_neuron_backward", tensors, sizes, p)
    return g_weight, g_bias, g_leak


def norm_neuron_span_backward_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    g: Tensor,
    g_vT: Tensor | None,
    p: Floats,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See reference.norm_neuron_span_backward_."""
    for name, tensor in (("v0", v0), ("g_vT", g_vT), ("leak", leak)):
        check_shape(name, tensor, y.shape[1:])
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_shape(name, tensor, y.shape[2:3])
    check_shape("g_s", g, y.shape)
    g_v0 = y.new_empty(y.shape[1:])
    g_leak = leak_like(y[0], p) if leak is None else leak.clone()
    _, count, size = planes(y, 2)
    tensors = [y, scale, shift, v0, g, g_vT, g_v0, g_leak]
    call("norm_neuron_span_backward", tensors, [*y.shape[:2], count, size], p)
    return g_v0, g_leak
