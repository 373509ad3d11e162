"""Batch norm by its parts. M planes (time and batch), C channels; float32."""

import torch
from torch import Tensor

from revedge.kernels import _native_calls as native
from revedge.kernels import reference
from revedge.kernels._dispatch import register

_channel_stats = register(
    "channel_stats(Tensor y) -> (Tensor, Tensor)",
    reference=reference.channel_stats,
    native=native.channel_stats,
    meta=lambda y: (y.new_empty(y.shape[1]), y.new_empty(y.shape[1])),
)
_norm_forward = register(
    "norm_forward(Tensor y, Tensor scale, Tensor shift) -> Tensor",
    reference=reference.norm_forward,
    native=native.norm_forward,
    meta=lambda y, scale, shift: y.new_empty(y.shape),
)
_norm_backward = register(
    "norm_backward_(Tensor y, Tensor(a!) g, Tensor mean, Tensor inv_std, Tensor weight, int first)"
    " -> (Tensor, Tensor)",
    reference=reference.norm_backward_,
    native=native.norm_backward_,
    meta=lambda y, g, mean, inv_std, weight, first: (
        torch.empty_like(weight),
        torch.empty_like(weight),
    ),
)


@torch.no_grad()
def channel_stats(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean [C], biased variance [C]) of ``y`` [M, C, ...].

    Sums are float64 in an order that depends on the shape only (reference/norm.py), so the result
    is the same for any number of threads.
    """
    mean, variance = _channel_stats(y)
    return mean, variance


@torch.no_grad()
def norm_affine(
    mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scale, shift, inv_std), all [C], so that batch norm is ``y * scale + shift``."""
    inv_std = (var + eps).sqrt().reciprocal()
    scale = weight * inv_std
    return scale, bias - mean * scale, inv_std


@torch.no_grad()
def norm_forward(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``y * scale + shift`` (two roundings) per channel of ``y`` [M, C, ...]."""
    result: Tensor = _norm_forward(y, scale, shift)
    return result


@torch.no_grad()
def norm_backward_(
    y: Tensor, g: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, *, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Back-propagate through a batch norm that used the statistics of its batch.

    Args:
        y: what the norm was given [M, C, ...].
        g: gradient of its result, contiguous; overwritten with that of y. It may have more channels
            than y, which are then left alone.
        mean, inv_std, weight: the norm [C].
        first: the channel of ``g`` that belongs to the first of y.

    Returns:
        (g_weight [C], g_bias [C]).
    """
    g_weight, g_bias = _norm_backward(y, g, mean, inv_std, weight, first)
    return g_weight, g_bias
