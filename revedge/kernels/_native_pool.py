"""Calls of the C library: pools, by themselves and behind a neuron. See _native_calls.py."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from revedge.kernels._native_calls import (
    call,
    check_range,
    check_shape,
    check_slab,
    leak_like,
    step_stride,
)

_Floats = Sequence[float]


def pooled_shape(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Return the shape of ``max_pool(x)``."""
    sizes = zip(x.shape[-2:], kernel, stride, padding, strict=True)
    return [*x.shape[:-2], *((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)]


def max_pool(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """See reference.max_pool."""
    y = x.new_empty(pooled_shape(x, kernel, stride, padding))
    call("max_pool", [x, y], _pool_sizes(x, y, kernel, stride, padding), [])
    return y


def max_pool_backward(
    x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """See reference.max_pool_backward."""
    check_shape("g", g, pooled_shape(x, kernel, stride, padding))
    g_x = torch.empty_like(x)
    call("max_pool_backward", [x, g, g_x], _pool_sizes(x, g, kernel, stride, padding), [])
    return g_x


def _pool_sizes(x: Tensor, y: Tensor, *windows: list[int]) -> list[int]:
    window = _checked([size for pair in windows for size in pair])
    height, width = x.shape[-2:]
    planes = x.numel() // max(1, height * width)
    return [planes, height, width, *y.shape[-2:], *window]


def norm_neuron_pool_(
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    p: _Floats,
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
    sizes = [*y.shape, channels, first, *pooled[-2:], *_checked(window), step_stride(y)]
    call("norm_neuron_pool", [y, scale, shift, bits], sizes, p)


def norm_neuron_pool_backward_(
    y: Tensor,
    g_pooled: Tensor,
    g: Tensor,
    norm: list[Tensor],
    p: _Floats,
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
    sizes = [*y.shape, channels, first, *pooled[-2:], *_checked(window)]
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
    sizes = [planes, *shape[-2:], *mean.shape[-2:], *_checked(window)]
    call("average_bits", [bits, mean], sizes, [])
    return mean


def _checked(window: list[int]) -> list[int]:
    for k, p in zip(window[:2], window[4:], strict=True):
        if k < 1 or p < 0 or 2 * p > k:
            raise ValueError(f"a window of {k} with padding {p} is not one; use at most {k // 2}")
    return window
