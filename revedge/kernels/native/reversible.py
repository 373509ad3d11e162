"""Calls of the C library: the reversible neuron."""

import torch
from torch import Tensor

from revedge.kernels._shapes import check_shape
from revedge.kernels.native._call import Floats, call
from revedge.kernels.reference.rounding import to_float32


def _reversible_sizes(x: Tensor, p: Floats, dim: int) -> list[int]:
    """Return [T, P, groups, L] (see reference/reversible.py)."""
    before = 1
    for size in x.shape[1 : dim % x.dim()]:
        before *= size
    groups = int(p[0])
    return [x.shape[0], before, groups, x.numel() // max(1, x.shape[0] * before * groups)]


def _reversible_floats(p: Floats) -> list[float]:
    """Return the constants as the reference rounds them."""
    a = 1.0 / p[1]
    return [to_float32(a), to_float32(1.0 - a), *p[2:]]


def reversible_forward(x: Tensor, p: Floats, dim: int) -> tuple[Tensor, Tensor]:
    """See reference.reversible_forward."""
    y, v = torch.empty_like(x), x.new_empty(x.shape[1:])
    sizes = _reversible_sizes(x, p, dim)
    call("reversible_forward", [x, y, v, None], sizes, _reversible_floats(p))
    return y, v


def reversible_forward_stored(x: Tensor, p: Floats, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.reversible_forward_stored."""
    y, v, m = torch.empty_like(x), x.new_empty(x.shape[1:]), torch.empty_like(x)
    sizes = _reversible_sizes(x, p, dim)
    call("reversible_forward", [x, y, v, m], sizes, _reversible_floats(p))
    return y, v, m


def reversible_reconstruct(y: Tensor, p: Floats, dim: int) -> Tensor:
    """See reference.reversible_reconstruct."""
    x = torch.empty_like(y)
    sizes = _reversible_sizes(y, p, dim)
    call("reversible_reconstruct", [y, x], sizes, _reversible_floats(p))
    return x


def reversible_backward_(y: Tensor, g: Tensor, p: Floats, dim: int) -> Tensor:
    """See reference.reversible_backward_."""
    x = torch.empty_like(y)
    _reversible_backward(y, None, g, g, x, p, dim)
    return x


def reversible_backward(y: Tensor, g: Tensor, p: Floats, dim: int) -> Tensor:
    """See reference.reversible_backward."""
    g_x = torch.empty_like(g)
    _reversible_backward(y, None, g, g_x, None, p, dim)
    return g_x


def reversible_stored_backward_(y: Tensor, m: Tensor, g: Tensor, p: Floats, dim: int) -> Tensor:
    """See reference.reversible_stored_backward_."""
    x = torch.empty_like(y)
    _reversible_backward(y, m, g, g, x, p, dim)
    return x


def reversible_stored_backward(y: Tensor, m: Tensor, g: Tensor, p: Floats, dim: int) -> Tensor:
    """See reference.reversible_stored_backward."""
    g_x = torch.empty_like(g)
    _reversible_backward(y, m, g, g_x, None, p, dim)
    return g_x


def _reversible_backward(
    y: Tensor,
    m: Tensor | None,
    g: Tensor,
    g_x: Tensor,
    x: Tensor | None,
    p: Floats,
    dim: int,
) -> None:
    check_shape("g_y", g, y.shape)
    check_shape("m", m, y.shape)
    sizes = _reversible_sizes(y, p, dim)
    call("reversible_backward", [y, m, g, g_x, x], sizes, _reversible_floats(p))
