"""Batch norm, neuron and pool, of the kernels here and torch's pools; see reference/norm_neuron_pool.py.

On a GPU the pooled sweep is not one kernel: the spikes stand between the neuron and the pool.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from revedge.kernels._shapes import check_range, check_shape, check_slab
from revedge.kernels.triton._launch import planes
from revedge.kernels.triton.bits import merge_bits, unpack_bits
from revedge.kernels.triton.neuron import neuron_backward_, neuron_forward
from revedge.kernels.triton.norm_neuron import norm_neuron_backward_, norm_neuron_forward

_Floats = Sequence[float]
_Window = list[int]


def norm_neuron_pool_(
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    p: _Floats,
    bits: Tensor,
    channels: int,
    first: int,
    window: _Window,
) -> None:
    """See reference.norm_neuron_pool_."""
    check_range("bits", channels, y.shape[2], first)
    s = _spikes(y, scale, shift, p).flatten(0, 1)
    ones = torch.max_pool2d(s, window[:2], window[2:4], window[4:]).to(torch.uint8)
    sizes = planes(ones, 1)
    check_shape("bits", bits, [(math.prod([sizes[0], channels, sizes[2]]) + 7) // 8])
    merge_bits(ones, bits, sizes, (channels, first))


def norm_neuron_pool_backward_(
    y: Tensor,
    g_pooled: Tensor,
    g: Tensor,
    norm: list[Tensor],
    p: _Floats,
    first: int,
    window: _Window,
    average: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.norm_neuron_pool_backward_."""
    check_slab("g", g, y, 2, first)
    scale, shift = None, None
    if norm:
        mean, inv_std, weight, bias = norm
        scale = weight * inv_std
        shift = bias - mean * scale
    flat = _spikes(y, scale, shift, p).flatten(0, 1)
    parts = window[:2], window[2:4], window[4:]
    g_out = g_pooled.narrow(2, first, y.shape[2]).flatten(0, 1).contiguous()
    if average:
        g_s = torch.ops.aten.avg_pool2d_backward(g_out, flat, *parts, False, True, None)
    else:
        _, places = torch.ops.aten.max_pool2d_with_indices(flat, *parts)
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        g_s = backward(g_out, flat, *parts, [1, 1], False, places)
    g_y = g_s.reshape(y.shape).contiguous()
    if norm:
        args = (y, g_y, norm[0], norm[1], norm[2], norm[3], p, 0)
        g_weight, g_bias, g_leak = norm_neuron_backward_(*args)
    else:
        _, g_leak = neuron_backward_(y, None, g_y, None, p, False)
        g_weight, g_bias = y.new_empty(0), y.new_empty(0)
    g.narrow(2, first, y.shape[2]).copy_(g_y)
    return g_weight, g_bias, g_leak


def _spikes(y: Tensor, scale: Tensor | None, shift: Tensor | None, p: _Floats) -> Tensor:
    if scale is None or shift is None:
        return neuron_forward(y, None, p, False, False)[0]
    return norm_neuron_forward(y, scale, shift, None, p, pack=False, state=False)[0]


def average_bits(bits: Tensor, shape: list[int], window: _Window) -> Tensor:
    """See reference.average_bits."""
    s = unpack_bits(bits, shape)
    return torch.nn.functional.avg_pool2d(s, window[:2], window[2:4], window[4:])
