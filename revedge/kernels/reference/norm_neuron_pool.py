"""Batch norm, neuron and pool together, as their parts in turn. Window: [kh, kw, sh, sw, ph, pw]."""

import torch
from torch import Tensor

from revedge.kernels.params import NeuronParams
from revedge.kernels.reference.bits import pack_bits, unpack_bits
from revedge.kernels.reference.norm import (
    norm_neuron_backward_,
    norm_neuron_forward,
)
from revedge.kernels.reference.pool import max_pool, max_pool_backward

_Window = list[int]


def norm_neuron_pool_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    p: NeuronParams,
    bits: Tensor,
    channels: int,
    first: int,
    window: _Window,
) -> None:
    """Write the bits of the largest spike of each window of ``y`` [T, B, C, H, W] to ``bits``."""
    s, _ = norm_neuron_forward(y, scale, shift, None, p, False)
    pooled = max_pool(s.flatten(0, 1), window[:2], window[2:4], window[4:])
    shape = [*y.shape[:2], channels, *pooled.shape[2:]]
    whole = unpack_bits(bits, shape)
    whole.narrow(2, first, y.shape[2]).copy_(pooled.reshape(*y.shape[:3], *shape[3:]))
    bits.copy_(pack_bits(whole))


def norm_neuron_pool_backward_(
    y: Tensor,
    g_pooled: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    p: NeuronParams,
    first: int,
    window: _Window,
    average: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gradient of ``y`` to ``g``; return (g_weight, g_bias, g_leak).

    ``y`` is the channels from ``first`` on of ``g`` and ``g_pooled``, the gradient of the pool's result; or is ``g``.
    """
    scale = weight * inv_std
    s, _ = norm_neuron_forward(y, scale, bias - mean * scale, None, p, False)
    flat = s.flatten(0, 1)
    g_out = g_pooled.narrow(2, first, y.shape[2]).flatten(0, 1).contiguous()
    parts = window[:2], window[2:4], window[4:]
    if average:
        g_s = torch.ops.aten.avg_pool2d_backward(g_out, flat, *parts, False, True, None)
    else:
        g_s = max_pool_backward(flat, g_out, *parts)
    g_y = g_s.reshape(y.shape).contiguous()
    found = norm_neuron_backward_(y, g_y, mean, inv_std, weight, bias, p)
    g.narrow(2, first, y.shape[2]).copy_(g_y)
    return found


def average_bits(bits: Tensor, shape: list[int], window: _Window) -> Tensor:
    """Return the mean of each window, padding included, of the planes [N, C, H, W] that ``bits`` holds."""
    s = unpack_bits(bits, shape)
    return torch.nn.functional.avg_pool2d(s, window[:2], window[2:4], window[4:])
