"""Max pooling of [N, C, H, W]; torch's own is the definition."""

import torch
from torch import Tensor

_Pair = list[int]


def max_pool(x: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair) -> Tensor:
    """Return the largest value of every window."""
    return torch.max_pool2d(x, kernel, stride, padding)


def max_pool_backward(x: Tensor, g: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair) -> Tensor:
    """Return the gradient of ``x``: each window's goes to the first of its largest values."""
    window = (kernel, stride, padding, [1, 1], False)
    _, places = torch.ops.aten.max_pool2d_with_indices(x, *window)
    g_x: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(g, x, *window, places)
    return g_x
