"""Integrate-and-fire behind a batch norm, without the tensor in between.

T time, B batch, C channels; float32. Nothing here is differentiable: backward passes are functions of their own.
"""

import torch
from torch import Tensor

from revedge.kernels import reference
from revedge.kernels._dispatch import register
from revedge.kernels.native import norm_neuron as native
from revedge.kernels.neuron import leak_like, spikes_like, state_like
from revedge.kernels.params import NeuronParams

_norm_neuron_forward = register(
    "norm_neuron_forward(Tensor y, Tensor scale, Tensor shift, Tensor? v0, float[] p, bool pack,"
    " bool state) -> (Tensor, Tensor)",
    reference=lambda y, scale, shift, v0, p, pack, state: reference.norm_neuron_forward(
        y, scale, shift, v0, NeuronParams.from_floats(p), pack, state
    ),
    native=native.norm_neuron_forward,
    meta=lambda y, scale, shift, v0, p, pack, state: (
        spikes_like(y, pack),
        state_like(y, state),
    ),
)
_norm_neuron_pack = register(
    "norm_neuron_pack_(Tensor y, Tensor scale, Tensor shift, float[] p, Tensor(a!) bits,"
    " int channels, int first) -> ()",
    reference=lambda y, scale, shift, p, bits, channels, first: reference.norm_neuron_pack_(
        y, scale, shift, NeuronParams.from_floats(p), bits, channels, first
    ),
    native=native.norm_neuron_pack_,
    meta=lambda y, scale, shift, p, bits, channels, first: None,
    dtypes=(torch.float32, torch.uint8),
)
_norm_neuron_backward = register(
    "norm_neuron_backward_(Tensor y, Tensor(a!) g, Tensor mean, Tensor inv_std, Tensor weight,"
    " Tensor bias, float[] p, int first) -> (Tensor, Tensor, Tensor)",
    reference=lambda y, g, mean, inv_std, weight, bias, p, first: reference.norm_neuron_backward_(
        y, g, mean, inv_std, weight, bias, NeuronParams.from_floats(p), first
    ),
    native=native.norm_neuron_backward_,
    meta=lambda y, g, mean, inv_std, weight, bias, p, first: (
        torch.empty_like(weight),
        torch.empty_like(bias),
        leak_like(y[0], p),
    ),
)
_norm_neuron_span_backward = register(
    "norm_neuron_span_backward_(Tensor y, Tensor scale, Tensor shift, Tensor? v0, Tensor(a!) g,"
    " Tensor? g_vT, float[] p, Tensor? leak=None) -> (Tensor, Tensor)",
    reference=lambda y, scale, shift, v0, g, g_vT, p, leak=None: (
        reference.norm_neuron_span_backward_(
            y, scale, shift, v0, g, g_vT, NeuronParams.from_floats(p), leak
        )
    ),
    native=native.norm_neuron_span_backward_,
    meta=lambda y, scale, shift, v0, g, g_vT, p, leak=None: (
        state_like(y, True),
        leak_like(y[0], p),
    ),
)


@torch.no_grad()
def norm_neuron_forward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    p: NeuronParams,
    *,
    pack: bool = False,
    state: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return ``neuron_forward(y * scale + shift)`` without the tensor in between.

    Args:
        y: [T, B, C, ...].
        scale, shift: [C], see :func:`norm_affine`.
        v0: membrane before the first step [B, C, ...], or None.
        p: the neuron.
        pack: return the spikes as bits, uint8 [ceil(numel / 8)] (see :func:`pack_bits`), and
            never hold them as float32.
        state: return the membrane, too; else it is empty.

    Returns:
        (spikes [T, B, C, ...] or their bits, v_T [B, C, ...] or [0]).
    """
    s, v_T = _norm_neuron_forward(y, scale, shift, v0, p.as_floats(), pack, state)
    return s, v_T


@torch.no_grad()
def norm_neuron_pack_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    p: NeuronParams,
    bits: Tensor,
    *,
    channels: int,
    first: int,
) -> None:
    """Write the spikes of a slab of channels among the bits of all of them.

    Args:
        y: [T, B, C, ...], the channels ``first`` to ``first + C``.
        scale, shift: [C].
        p: the neuron; it starts at ``p.v_initial``.
        bits: uint8 [ceil(T * B * channels * ... / 8)]; zero where two slabs share a byte.
        channels: of all slabs together.
        first: the first channel of this one.
    """
    _norm_neuron_pack(y, scale, shift, p.as_floats(), bits, channels, first)


@torch.no_grad()
def norm_neuron_backward_(
    y: Tensor,
    g_s: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    p: NeuronParams,
    *,
    first: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Back-propagate through neuron and batch norm (with batch statistics), channel by channel.

    The bits are those of ``norm_forward``, ``neuron_backward_`` and ``norm_backward_`` in turn, the
    membrane starting at ``p.v_initial``.

    Args:
        y: what the norm was given [T, B, C, ...].
        g_s: gradient of the spikes, contiguous; overwritten with that of y. It may have more channels
            than y, which are then left alone.
        mean, inv_std, weight, bias: the norm [C].
        p: the neuron.
        first: the channel of ``g_s`` that belongs to the first of y.

    Returns:
        (g_weight [C], g_bias [C], g_leak [B, C, ...] or None).
    """
    g_weight, g_bias, g_leak = _norm_neuron_backward(
        y, g_s, mean, inv_std, weight, bias, p.as_floats(), first
    )
    return g_weight, g_bias, g_leak if p.learns_leak else None


@torch.no_grad()
def norm_neuron_span_backward_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    g_s: Tensor,
    g_vT: Tensor | None,
    p: NeuronParams,
    *,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ``neuron_backward_(y * scale + shift, ...)`` without the tensor in between.

    For a span of time: what lies behind it comes in by ``g_vT`` and ``leak``.

    Args:
        y, scale, shift, v0: as `norm_neuron_forward` has them.
        g_s, g_vT, p, leak: as `neuron_backward_` has them.

    Returns:
        (gradient of ``y * scale + shift``, which is ``g_s``; g_v0 [B, C, ...]; g_leak [B, C, ...] or None).
    """
    g_v0, g_leak = _norm_neuron_span_backward(y, scale, shift, v0, g_s, g_vT, p.as_floats(), leak)
    return g_s, g_v0, g_leak if p.learns_leak else None
