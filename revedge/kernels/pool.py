"""Max pooling without indices: nothing is kept between forward and backward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from revedge.kernels import reference
from revedge.kernels._dispatch import register
from revedge.kernels.native import pool as native

_max_pool = register(
    "max_pool(Tensor x, int[] kernel, int[] stride, int[] padding) -> Tensor",
    reference=reference.max_pool,
    native=native.max_pool,
    meta=lambda x, kernel, stride, padding: x.new_empty(
        native.pooled_shape(x, kernel, stride, padding)
    ),
)
_max_pool_backward = register(
    "max_pool_backward(Tensor x, Tensor g, int[] kernel, int[] stride, int[] padding) -> Tensor",
    reference=reference.max_pool_backward,
    native=native.max_pool_backward,
    meta=lambda x, g, kernel, stride, padding: x.new_empty(x.shape),
)


@torch.no_grad()
def max_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the largest value of every window.

    Args:
        x: [N, C, H, W].
        kernel, stride, padding: of the two spatial dimensions; padding is at most half the kernel.

    Time: 8 to 20 times less than torch's own on the CPU, which looks for indices one by one.
    """
    result: Tensor = _max_pool(x, list(kernel), list(stride), list(padding))
    return result


@torch.no_grad()
def max_pool_backward(
    x: Tensor, g: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the gradient of ``x`` from ``g``, that of ``max_pool(x)``.

    Of equal values the first one, row by row, gets it, as in torch.
    """
    result: Tensor = _max_pool_backward(x, g, list(kernel), list(stride), list(padding))
    return result
