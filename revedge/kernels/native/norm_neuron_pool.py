"""Calls of the C library: pools behind a neuron, and what they leave."""

import math

import torch
from torch import Tensor

from revedge.kernels._shapes import check_range, check_shape, check_slab
from revedge.kernels.native._call import Floats, call
from revedge.kernels.native.neuron import leak_like, step_stride
from revedge.kernels.native.pool import checked_window, pooled_shape


def norm_neuron_pool_(
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    p: Floats,
    bits: Tensor,
    channels: int,
    first: int,
    window: list[int],
) -> None:
    """See reference.norm_neuron_pool_."""
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_shape(name, tensor, y.shape[2:3])
    check_range("bits", channels, y.shape[2], first)
    pooled = pooled_shape(y, window[:2], window[2:4], window[4:])
    numel = math.prod([*y.shape[:2], channels, *pooled[-2:]])
    check_shape("bits", bits, [(numel + 7) // 8])
    sizes = [*y.shape, channels, first, *pooled[-2:], *checked_window(window), step_stride(y)]
    call("norm_neuron_pool", [y, scale, shift, bits], sizes, p)


def norm_neuron_pool_backward_(
    y: Tensor,
    g_pooled: Tensor,
    g: Tensor,
    norm: list[Tensor],
    p: Floats,
    first: int,
    window: list[int],
    average: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.norm_neuron_pool_backward_."""
    channels = check_slab("g", g, y, 2, first)
    pooled = pooled_shape(y, window[:2], window[2:4], window[4:])
    check_shape("g_pooled", g_pooled, [*y.shape[:2], channels, *pooled[-2:]])
    for name, tensor in zip(("mean", "inv_std", "weight", "bias"), norm, strict=bool(norm)):
        check_shape(name, tensor, y.shape[2:3])
    g_weight, g_bias = (y.new_empty(y.shape[2] if norm else 0) for _ in range(2))
    g_leak = leak_like(y[0], p)
    of_norm: list[Tensor | None] = [None] * 5
    if norm:
        mean, inv_std, weight, bias = norm
        scale = weight * inv_std
        of_norm = [scale, bias - mean * scale, mean, inv_std, weight]
    sizes = [*y.shape, channels, first, *pooled[-2:], *checked_window(window)]
    sizes += [step_stride(y), int(average)]
    tensors = [y, g_pooled, g, *of_norm, g_weight, g_bias, g_leak]
    call("norm_neuron_pool_backward", tensors, sizes, p)
    return g_weight, g_bias, g_leak


def average_bits(bits: Tensor, shape: list[int], window: list[int]) -> Tensor:
    """See reference.average_bits."""
    numel = math.prod(shape)
    if bits.numel() * 8 < numel:
        raise ValueError(f"{bits.numel()} bytes hold no {numel} bits of {shape}")
    parts = window[:2], window[2:4], window[4:]
    mean = torch.empty(pooled_shape(torch.empty(shape, device="meta"), *parts))
    planes = numel // max(1, shape[-2] * shape[-1])
    sizes = [planes, *shape[-2:], *mean.shape[-2:], *checked_window(window)]
    call("average_bits", [bits, mean], sizes, [])
    return mean
