"""A pool right behind a neuron: one sweep from the convolution's output to the pooled spikes, and one back.

Of the spikes that a pool takes the largest of, only its result is kept, at one bit per window: the backward pass meets
the neurons again anyway, and with them who fired first. Means are made from the spikes' bits where they are read.
"""

import math

import torch
from torch import Tensor, nn

from revedge import kernels
from revedge.engine.signal import Signal
from revedge.engine.unit import Unit
from revedge.kernels import Window
from revedge.neurons import BaseNode

# In neurons: the kernels work plane by plane, and smaller ones are quicker all at once.
_LEAST_PLANE = 64
# Scratch of the kernels, per thread; planes that take more are pooled by the tail, chunk by chunk.
_MOST_SCRATCH_BYTES = 2**20


def window_of(unit: Unit, shape: torch.Size, *, batch_stats: bool) -> Window | None:
    """Return the window of the pool that norm and neuron of ``unit`` take along; None: the tail has to.

    Args:
        unit: whose pool.
        shape: of what the unit normalizes, ``[T, B, C, H, W]``.
        batch_stats: whether the norm, if there is one, has the statistics of the batch.
    """
    if not ((unit.norm is None or batch_stats) and unit.spikes_are_bits and len(shape) == 5):
        return None
    if shape[3] * shape[4] < _LEAST_PLANE:
        return None
    if _plane_bytes(shape) * (shape[0] + 2) > _MOST_SCRATCH_BYTES:
        return None
    parts = _parts(unit.pool)
    return pool_window(parts[0]) if parts else None


def behind_window(pool: nn.Module | None) -> list[nn.Module]:
    """Return what is left of a pool whose first part is a window."""
    return _parts(pool)[1:]


def packed(like: Tensor, shape: torch.Size) -> Tensor:
    """Return zeroed bits for spikes of ``shape``, on the device of ``like``."""
    return like.new_zeros((math.prod(shape) + 7) // 8, dtype=torch.uint8)


def pooled_shape(shape: torch.Size, window: Window) -> torch.Size:
    """Return ``[T, B, C, OH, OW]`` of ``[T, B, C, H, W]``."""
    return torch.Size([*shape[:3], *window.pooled(shape[3], shape[4])])


def fire_pooled(
    unit: Unit,
    y: Tensor,
    norm: tuple[Tensor, Tensor] | None,
    window: Window,
    *,
    pack: bool,
) -> Signal:
    """Normalize ``y`` ``[T, B, C, H, W]`` by ``norm`` (scale and shift) or not, let the neuron answer; pool that."""
    assert isinstance(unit.neuron, BaseNode)
    params = unit.neuron.params()
    shape = pooled_shape(y.shape, window)
    if window.average:
        bits = _bits_of_all(y, norm, params)
        signal = Signal(shape, bits=bits, window=window, unpooled=y.shape)
    else:
        bits = packed(y, shape)
        scale, shift = norm or (None, None)
        kernels.norm_neuron_pool_(y, scale, shift, params, bits, window, channels=shape[2])
        signal = Signal(shape, bits=bits, window=window)
    if pack:
        return signal
    return Signal(shape, dense=signal.whole().view(shape), window=window)


def _bits_of_all(
    y: Tensor, norm: tuple[Tensor, Tensor] | None, params: kernels.NeuronParams
) -> Tensor:
    if norm is None:
        return kernels.neuron_forward(y, None, params, pack=True, state=False)[0]
    return kernels.norm_neuron_forward(y, *norm, None, params, pack=True, state=False)[0]


def gradient_room(y: Tensor, *, free: bool) -> Tensor:
    """Return where the gradient of ``y`` ``[T, B, C, H, W]`` goes: over ``y``, if nobody needs it and a channel of it
    is small enough for the scratch of the kernel.
    """
    fits = _plane_bytes(y.shape) * y.shape[0] * (y.shape[1] + 1) <= _MOST_SCRATCH_BYTES
    return y if free and fits and y.is_contiguous() else y.new_empty(y.shape)


def _plane_bytes(shape: torch.Size) -> int:
    return 4 * math.prod(shape[3:])


def _parts(pool: nn.Module | None) -> list[nn.Module]:
    return list(pool) if type(pool) is nn.Sequential else [] if pool is None else [pool]


def pool_window(pool: nn.Module) -> Window | None:
    """Return the window of a pool that the kernels know; None for other modules, and for pools with hooks."""
    if type(pool) is nn.MaxPool2d:
        plain = not (pool.ceil_mode or pool.return_indices) and _pair(pool.dilation) == (1, 1)
    elif type(pool) is nn.AvgPool2d:
        plain = not pool.ceil_mode and pool.count_include_pad and pool.divisor_override is None
    else:
        return None
    if not plain or pool._forward_hooks or pool._forward_pre_hooks or pool._backward_hooks:
        return None
    stride = pool.kernel_size if pool.stride is None else pool.stride
    average = type(pool) is nn.AvgPool2d
    return Window(_pair(pool.kernel_size), _pair(stride), _pair(pool.padding), average)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
