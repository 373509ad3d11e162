"""Integrate-and-fire over a whole sequence.

T time, N neurons (all after T); float32. Nothing here is differentiable: backward passes are functions of their own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from revedge.kernels import reference
from revedge.kernels._dispatch import register
from revedge.kernels.native import neuron as native
from revedge.kernels.params import NeuronParams

_Floats = Sequence[float]


def spikes_like(x: Tensor, pack: bool) -> Tensor:
    """Return an empty tensor for spikes of the shape of ``x``, or for their bits."""
    return x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8) if pack else x.new_empty(x.shape)


def state_like(x: Tensor, state: bool) -> Tensor:
    """Return an empty tensor for a membrane of ``x`` [T, ...], [0] without ``state``."""
    return x.new_empty(x.shape[1:] if state else 0)


def leak_like(v: Tensor, p: _Floats) -> Tensor:
    """Return an empty tensor for the gradient of a leak, [0] where the neuron ``p`` learns none."""
    return torch.empty_like(v) if p[9] or p[10] or p[11] else v.new_empty(0)


_neuron_forward = register(
    "neuron_forward(Tensor x, Tensor? v0, float[] p, bool pack, bool state) -> (Tensor, Tensor)",
    reference=lambda x, v0, p, pack, state: reference.neuron_forward(
        x, v0, NeuronParams.from_floats(p), pack, state
    ),
    native=native.neuron_forward,
    meta=lambda x, v0, p, pack, state: (spikes_like(x, pack), state_like(x, state)),
    repeated_input=True,
)
_neuron_backward = register(
    "neuron_backward_(Tensor x, Tensor? v0, Tensor(a!) g, Tensor? g_vT, float[] p, bool state,"
    " Tensor? leak=None) -> (Tensor, Tensor)",
    reference=lambda x, v0, g, g_vT, p, state, leak=None: reference.neuron_backward_(
        x, v0, g, g_vT, NeuronParams.from_floats(p), state, leak
    ),
    native=native.neuron_backward_,
    meta=lambda x, v0, g, g_vT, p, state, leak=None: (state_like(x, state), leak_like(x[0], p)),
    repeated_input=True,
)
_neuron_backward_apart = register(
    "neuron_backward(Tensor x, Tensor? v0, Tensor g, Tensor? g_vT, float[] p)"
    " -> (Tensor, Tensor, Tensor)",
    reference=lambda x, v0, g, g_vT, p: reference.neuron_backward(
        x, v0, g, g_vT, NeuronParams.from_floats(p)
    ),
    native=native.neuron_backward,
    meta=lambda x, v0, g, g_vT, p: (
        x.new_empty(x.shape),
        x.new_empty(x.shape[1:]),
        leak_like(x[0], p),
    ),
    repeated_input=True,
)


@torch.no_grad()
def neuron_forward(
    x: Tensor, v0: Tensor | None, p: NeuronParams, *, pack: bool = False, state: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the spikes of a sequence and the membrane after it.

    Args:
        x: input current [T, ...]; one step expanded over time is read as it is, without T copies.
        v0: membrane before the first step [...]; None means ``p.v_initial``.
        p: the neuron.
        pack: return the spikes as bits, uint8 [ceil(numel / 8)], and never hold them as float32.
        state: return the membrane, too; else it is empty, and never stands in memory as a whole.

    Returns:
        (s [T, ...] of exact 0.0 and 1.0, or their bits; v_T [...] or [0]).
    """
    s, v_T = _neuron_forward(x, v0, p.as_floats(), pack, state)
    return s, v_T


@torch.no_grad()
def neuron_backward_(
    x: Tensor,
    v0: Tensor | None,
    g_s: Tensor,
    g_vT: Tensor | None,
    p: NeuronParams,
    *,
    state: bool = True,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Back-propagate through time, recomputing the membrane from the input alone.

    Args:
        x, v0: as in the forward pass.
        g_s: gradient of the spikes [T, ...], contiguous; overwritten with the gradient of x.
        g_vT: gradient of the last membrane [...]; None means zero.
        p: the neuron.
        state: return the gradient of ``v0``, too; else it is empty.
        leak: g_leak of the time steps behind these, which this one goes on from; of a neuron that learns it only.

    Returns:
        (g_x, which is ``g_s``; g_v0 [...] or [0]; g_leak [...] or None): g_leak is, per neuron, the sum
        over time of dL/dh * dh/dk for the learnable leak k.

    Memory: a few hundred KiB per thread in C; 2T state tensors in the reference.
    """
    g_v0, g_leak = _neuron_backward(x, v0, g_s, g_vT, p.as_floats(), state, leak)
    return g_s, g_v0, g_leak if p.learns_leak else None


@torch.no_grad()
def neuron_backward(
    x: Tensor, v0: Tensor | None, g_s: Tensor, g_vT: Tensor | None, p: NeuronParams
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As :func:`neuron_backward_`, but leave ``g_s`` as it is and return a new g_x.

    Faster than a copy of ``g_s`` and the other; for gradients that belong to someone else.
    """
    g_x, g_v0, g_leak = _neuron_backward_apart(x, v0, g_s.contiguous(), g_vT, p.as_floats())
    return g_x, g_v0, g_leak if p.learns_leak else None
