"""Batch norm, neuron and pool together, as their parts in turn. Window: [kh, kw, sh, sw, ph, pw]."""

import torch
from torch import Tensor

from revedge.kernels.params import NeuronParams
from revedge.kernels.reference.bits import pack_bits, unpack_bits
from revedge.kernels.reference.neuron import neuron_backward_, neuron_forward
from revedge.kernels.reference.norm_neuron import norm_neuron_backward_, norm_neuron_forward
from revedge.kernels.reference.pool import max_pool, max_pool_backward

_Window = list[int]


def norm_neuron_pool_(
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    p: NeuronParams,
    bits: Tensor,
    channels: int,
    first: int,
    window: _Window,
) -> None:
    """Write the bits of the largest spike of each window of ``y`` [T, B, C, H, W] to ``bits``."""
    s = _spikes(y, scale, shift, p)
    pooled = max_pool(s.flatten(0, 1), window[:2], window[2:4], window[4:])
    shape = [*y.shape[:2], channels, *pooled.shape[2:]]
    whole = unpack_bits(bits, shape)
    whole.narrow(2, first, y.shape[2]).copy_(pooled.reshape(*y.shape[:3], *shape[3:]))
    bits.copy_(pack_bits(whole))


def norm_neuron_pool_backward_(
    y: Tensor,
    g_pooled: Tensor,
    g: Tensor,
    norm: list[Tensor],
    p: NeuronParams,
    first: int,
    window: _Window,
    average: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gradient of ``y`` to ``g``; return (g_weight, g_bias, g_leak), the first two empty without a norm.

    ``y`` is the channels from ``first`` on of ``g`` and ``g_pooled``, the gradient of the pool's result; or is ``g``.
    ``norm`` is mean, inv_std, weight, bias, or nothing.
    """
    scale, shift = None, None
    if norm:
        mean, inv_std, weight, bias = norm
        scale = weight * inv_std
        shift = bias - mean * scale
    flat = _spikes(y, scale, shift, p).flatten(0, 1)
    g_out = g_pooled.narrow(2, first, y.shape[2]).flatten(0, 1).contiguous()
    parts = window[:2], window[2:4], window[4:]
    if average:
        g_s = torch.ops.aten.avg_pool2d_backward(g_out, flat, *parts, False, True, None)
    else:
        g_s = max_pool_backward(flat, g_out, *parts)
    g_y = g_s.reshape(y.shape).contiguous()
    if norm:
        args = (y, g_y, norm[0], norm[1], norm[2], norm[3], p)
        g_weight, g_bias, g_leak = norm_neuron_backward_(*args)
    else:
        _, g_leak = neuron_backward_(y, None, g_y, None, p)
        g_weight, g_bias = y.new_empty(0), y.new_empty(0)
    g.narrow(2, first, y.shape[2]).copy_(g_y)
    return g_weight, g_bias, g_leak


def _spikes(y: Tensor, scale: Tensor | None, shift: Tensor | None, p: NeuronParams) -> Tensor:
    if scale is None or shift is None:
        return neuron_forward(y, None, p, False)[0]
    return norm_neuron_forward(y, scale, shift, None, p, False)[0]


def average_bits(bits: Tensor, shape: list[int], window: _Window) -> Tensor:
    """Return the mean of each window, padding included, of the planes [N, C, H, W] that ``bits`` holds."""
    s = unpack_bits(bits, shape)
    return torch.nn.functional.avg_pool2d(s, window[:2], window[2:4], window[4:])
