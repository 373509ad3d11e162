"""Batch norm, neuron and pool in one sweep; what leaves it is one bit per window or per spike.

T time, B batch, C channels, planes of H * W, of which the pool makes OH * OW; float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from revedge.kernels import reference
from revedge.kernels._dispatch import register
from revedge.kernels.native import norm_neuron_pool as native
from revedge.kernels.native.pool import pooled_shape
from revedge.kernels.params import NeuronParams

_Pair = tuple[int, int]


class Window(NamedTuple):
    """What a pool looks at: along height and width; ``average`` takes the mean, padding included, else the largest."""

    kernel: _Pair
    stride: _Pair
    padding: _Pair
    average: bool

    def as_ints(self) -> list[int]:
        """Return kernel, stride and padding in one list."""
        return [*self.kernel, *self.stride, *self.padding]

    def pooled(self, height: int, width: int) -> _Pair:
        """Return the height and width of what the pool makes of a plane."""
        return (
            (height + 2 * self.padding[0] - self.kernel[0]) // self.stride[0] + 1,
            (width + 2 * self.padding[1] - self.kernel[1]) // self.stride[1] + 1,
        )


_norm_neuron_pool = register(
    "norm_neuron_pool_(Tensor y, Tensor? scale, Tensor? shift, float[] p, Tensor(a!) bits,"
    " int channels, int first, int[] window) -> ()",
    reference=lambda y, scale, shift, p, bits, channels, first, window: reference.norm_neuron_pool_(
        y, scale, shift, NeuronParams.from_floats(p), bits, channels, first, window
    ),
    native=native.norm_neuron_pool_,
    meta=lambda y, scale, shift, p, bits, channels, first, window: None,
    dtypes=(torch.float32, torch.uint8),
    repeated_input=True,
)
_norm_neuron_pool_backward = register(
    "norm_neuron_pool_backward_(Tensor y, Tensor g_pooled, Tensor(a!) g, Tensor[] norm, float[] p,"
    " int first, int[] window, bool average) -> (Tensor, Tensor, Tensor)",
    reference=lambda y, g_pooled, g, norm, p, first, window, average: (
        reference.norm_neuron_pool_backward_(
            y, g_pooled, g, norm, NeuronParams.from_floats(p), first, window, average
        )
    ),
    native=native.norm_neuron_pool_backward_,
    meta=lambda y, g_pooled, g, norm, p, first, window, average: (
        y.new_empty(y.shape[2] if norm else 0),
        y.new_empty(y.shape[2] if norm else 0),
        torch.empty_like(y[0]) if p[9] or p[10] or p[11] else y.new_empty(0),
    ),
    repeated_input=True,
)
_average_bits = register(
    "average_bits(Tensor bits, int[] shape, int[] window) -> Tensor",
    reference=reference.average_bits,
    native=native.average_bits,
    meta=lambda bits, shape, window: bits.new_empty(
        pooled_shape(bits.new_empty(shape), window[:2], window[2:4], window[4:]),
        dtype=torch.float32,
    ),
    dtypes=(torch.uint8,),
)


@torch.no_grad()
def norm_neuron_pool_(
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    p: NeuronParams,
    bits: Tensor,
    window: Window,
    *,
    channels: int,
    first: int = 0,
) -> None:
    """Write, per window, whether a neuron of it spikes: the largest of the spikes, which never stand in memory.

    Args:
        y: [T, B, C, H, W], the channels ``first`` to ``first + C`` of ``channels``; one step expanded over time is
            read as it is.
        scale, shift: [C], see :func:`norm_affine`; None: there is no norm.
        p: the neuron; it starts at ``p.v_initial``.
        bits: uint8 [ceil(T * B * channels * OH * OW / 8)], zeroed before the first slab.
        window: of the largest, not of the average, whose spikes are packed one by one.
        channels: of all slabs together.
        first: the first channel of this one.

    Memory: 5 bytes of scratch per element of a plane and thread.

    Raises:
        ValueError: ``window`` is of an average.
    """
    if window.average:
        raise ValueError("means are not bits; pack the spikes and read them with average_bits")
    _norm_neuron_pool(y, scale, shift, p.as_floats(), bits, channels, first, window.as_ints())


@torch.no_grad()
def norm_neuron_pool_backward_(
    y: Tensor,
    g_pooled: Tensor,
    g: Tensor,
    norm: Sequence[Tensor],
    p: NeuronParams,
    window: Window,
    *,
    first: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Back-propagate through pool, neuron and batch norm (with batch statistics), channel by channel.

    The bits are those of the pool's backward and ``norm_neuron_backward_`` in turn.

    Args:
        y: what the norm was given [T, B, C, H, W].
        g_pooled: gradient of the pool's result [T, B, D, OH, OW], contiguous; D channels, at least C.
        g: written with the gradient of y [T, B, D, H, W]; channels beside those of y are left alone. It may be y.
        norm: mean, inv_std, weight and bias [C]; or nothing, if there is no norm.
        p: the neuron.
        window: the pool.
        first: the channel of ``g`` that belongs to the first of y.

    Returns:
        (g_weight [C], g_bias [C], g_leak [B, C, H, W] or None); the first two are empty without a norm.

    Memory: 4 (T + 2) bytes of scratch per element of a plane and thread, and 4 T B more where g is y.
    """
    g_weight, g_bias, g_leak = _norm_neuron_pool_backward(
        y, g_pooled, g, list(norm), p.as_floats(), first, window.as_ints(), window.average
    )
    return g_weight, g_bias, g_leak if p.learns_leak else None


@torch.no_grad()
def average_bits(bits: Tensor, shape: tuple[int, ...], window: Window) -> Tensor:
    """Return the means of the windows of spikes held as bits: [N, C, OH, OW] of ``shape`` [N, C, H, W]."""
    result: Tensor = _average_bits(bits, list(shape), window.as_ints())
    return result
