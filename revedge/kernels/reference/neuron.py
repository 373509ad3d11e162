"""Integrate-and-fire over a whole sequence. T time, N everything after it."""

import torch
from torch import Tensor

from revedge.kernels.params import NeuronParams
from revedge.kernels.reference.bits import pack_bits
from revedge.kernels.reference.rounding import to_float32
from revedge.kernels.reference.surrogates import surrogate_derivative


def _charge(x: Tensor, v: Tensor, p: NeuronParams) -> Tensor:
    # The bias is always added, so that h is never -0.0.
    h = v * to_float32(p.decay) + x * to_float32(p.gain)
    h = h + to_float32(p.bias + 0.0)
    return (
        h
        if p.late is None
        else torch.where(v >= to_float32(p.v_threshold), h - to_float32(p.late), h)
    )


def _reset(h: Tensor, fired: Tensor, p: NeuronParams) -> Tensor:
    if p.late is not None:
        return h
    if p.v_reset is None:
        return torch.where(fired, h - to_float32(p.v_threshold), h)
    return torch.where(fired, to_float32(p.v_reset), h)


def _first(x_TN: Tensor, v0_N: Tensor | None, p: NeuronParams) -> Tensor:
    if v0_N is not None:
        return v0_N.clone()
    return x_TN.new_full(x_TN.shape[1:], to_float32(p.v_initial))


def neuron_forward(
    x_TN: Tensor, v0_N: Tensor | None, p: NeuronParams, pack: bool = False, state: bool = True
) -> tuple[Tensor, Tensor]:
    """Return (spikes [T, ...], or their bits, last membrane [...], empty without ``state``)."""
    v = _first(x_TN, v0_N, p)
    s_TN = torch.empty_like(x_TN, memory_format=torch.contiguous_format)
    for t in range(x_TN.shape[0]):
        h = _charge(x_TN[t], v, p)
        fired = h >= to_float32(p.v_threshold)
        s_TN[t] = fired
        v = _reset(h, fired, p)
    return (pack_bits(s_TN) if pack else s_TN), v if state else v.new_empty(0)


def neuron_backward_(
    x_TN: Tensor,
    v0_N: Tensor | None,
    g_TN: Tensor,
    g_vT_N: Tensor | None,
    p: NeuronParams,
    state: bool = True,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Overwrite ``g_TN``, the gradient of the spikes, with that of x; return (g_v0, g_leak).

    g_v0 is empty without ``state``, g_leak unless ``p.learns_leak``; its sum goes on from ``leak``, or from 0.
    """
    v_threshold = to_float32(p.v_threshold)
    v = _first(x_TN, v0_N, p)
    before: list[Tensor] = []  # v[t-1]
    charged: list[Tensor] = []  # h[t]
    for t in range(x_TN.shape[0]):
        h = _charge(x_TN[t], v, p)
        before.append(v)
        charged.append(h)
        v = _reset(h, h >= v_threshold, p)
    g_v = torch.zeros_like(v) if g_vT_N is None else g_vT_N.clone()
    g_leak = torch.zeros_like(v) if p.learns_leak else v.new_empty(0)
    g_leak = g_leak if leak is None else leak
    for t in reversed(range(x_TN.shape[0])):
        h = charged[t]
        g_s = g_TN[t]
        if not p.detach_reset:
            ds_dv = (-v_threshold) if p.v_reset is None else to_float32(p.v_reset) - h
            g_s = g_s + g_v * ds_dv
        through = g_v if p.v_reset is None else torch.where(h >= v_threshold, 0.0, g_v)
        g_h = g_s * surrogate_derivative(h - v_threshold, p.surrogate, p.alpha) + through
        if p.learns_leak:
            dh_dk = x_TN[t] * to_float32(p.leak_x) + before[t] * to_float32(p.leak_v)
            g_leak = g_leak + g_h * (dh_dk + to_float32(p.leak_1))
        g_TN[t] = g_h * to_float32(p.gain)
        g_v = g_h * to_float32(p.decay)
    return g_v if state else g_v.new_empty(0), g_leak


def neuron_backward(
    x_TN: Tensor, v0_N: Tensor | None, g_TN: Tensor, g_vT_N: Tensor | None, p: NeuronParams
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (g_x, g_v0, g_leak) and leave ``g_TN`` as it is."""
    g_x = g_TN.clone(memory_format=torch.contiguous_format)
    return g_x, *neuron_backward_(x_TN, v0_N, g_x, g_vT_N, p)
