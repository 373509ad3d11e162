"""Calls of the C library: the neuron by itself."""

import torch
from torch import Tensor

from revedge.kernels._dispatch import repeats
from revedge.kernels._shapes import check_shape
from revedge.kernels.native._call import Floats, call


def neuron_forward(
    x: Tensor, v0: Tensor | None, p: Floats, pack: bool, state: bool
) -> tuple[Tensor, Tensor]:
    """See reference.neuron_forward."""
    check_shape("v0", v0, x.shape[1:])
    bits, s = spikes_like(x, pack)
    v = x.new_empty(x.shape[1:] if state else 0)
    call("neuron_forward", [x, v0, s, bits, v], [x.shape[0], _neurons(x), step_stride(x)], p)
    return (bits if pack else s), v


def neuron_backward_(
    x: Tensor,
    v0: Tensor | None,
    g: Tensor,
    g_vT: Tensor | None,
    p: Floats,
    state: bool,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See reference.neuron_backward_."""
    return _neuron_backward(x, v0, g, g, g_vT, p, state, leak)


def neuron_backward(
    x: Tensor, v0: Tensor | None, g: Tensor, g_vT: Tensor | None, p: Floats
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.neuron_backward."""
    g_x = x.new_empty(x.shape)
    return g_x, *_neuron_backward(x, v0, g, g_x, g_vT, p, True)


def _neuron_backward(
    x: Tensor,
    v0: Tensor | None,
    g: Tensor,
    g_x: Tensor,
    g_vT: Tensor | None,
    p: Floats,
    state: bool,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    for name, tensor in (("v0", v0), ("g_vT", g_vT), ("leak", leak)):
        check_shape(name, tensor, x.shape[1:])
    check_shape("g_s", g, x.shape)
    g_v0 = x.new_empty(x.shape[1:] if state else 0)
    g_leak = leak_like(x[0], p) if leak is None else leak.clone()
    tensors = [x, v0, g, g_x, g_vT, g_v0, g_leak]
    call("neuron_backward", tensors, [x.shape[0], _neurons(x), step_stride(x)], p)
    return g_v0, g_leak


def spikes_like(x: Tensor, pack: bool) -> tuple[Tensor, Tensor]:
    """Return (bits, floats) to be written, of which one is empty."""
    bits = x.new_empty((x.numel() + 7) // 8 if pack else 0, dtype=torch.uint8)
    return bits, x.new_empty(0 if pack else x.shape)


def leak_like(v: Tensor, p: Floats) -> Tensor:
    """Return zeros for the gradient of a leak, [0] where the neuron ``p`` learns none."""
    return torch.zeros_like(v) if p[9] or p[10] or p[11] else v.new_empty(0)


def _neurons(x: Tensor) -> int:
    return x.numel() // x.shape[0] if x.shape[0] else 0


def step_stride(x: Tensor) -> int:
    """Return how many elements the time steps of ``x`` are apart; 0 for one step that is repeated."""
    return 0 if repeats(x) else _neurons(x)
