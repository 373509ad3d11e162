"""Calls of the C library: pools by themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from revedge.kernels._shapes import check_shape
from revedge.kernels.native._call import call


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


def pooled_shape(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Return the shape of ``max_pool(x)``."""
    sizes = zip(x.shape[-2:], kernel, stride, padding, strict=True)
    return [*x.shape[:-2], *((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)]


def _pool_sizes(x: Tensor, y: Tensor, *windows: list[int]) -> list[int]:
    window = checked_window([size for pair in windows for size in pair])
    height, width = x.shape[-2:]
    planes = x.numel() // max(1, height * width)
    return [planes, height, width, *y.shape[-2:], *window]


def checked_window(window: list[int]) -> list[int]:
    """Return ``window``: sizes, strides and paddings, of two axes each; raise ValueError unless it is one."""
    for k, p in zip(window[:2], window[4:], strict=True):
        if k < 1 or p < 0 or 2 * p > k:
            raise ValueError(f"a window of {k} with padding {p} is not one; use at most {k // 2}")
    return window
