"""Batch norm by its parts. M planes (time and batch), C channels, S everything after them."""

import torch
from torch import Tensor

LANES = 16  # in which a sum is taken


def channel_sums(values: Tensor, *, backward: bool = False) -> Tensor:
    """Return the sum of each channel of ``values`` [M, C, ...], float64, in a defined order.

    Lane j of 16 takes the elements j, j+16, ... of each plane, planes in order, or ``backward`` from
    the last to the first, as gradients become known; the lanes are then added in pairs, j and
    j + half, from 16 down to 1. The order is the same on every machine and for every number of threads.
    """
    start = values.new_zeros((values.shape[1], LANES), dtype=torch.float64)
    return _add_lanes(_to_lanes(values.flip(0) if backward else values, start))


def _to_lanes(values: Tensor, start: Tensor) -> Tensor:
    """Return the lanes ``start`` [C, LANES] and what ``values`` [M, C, ...] add to them."""
    m, c = values.shape[:2]
    flat = values.reshape(m, c, -1).double()
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[2] % LANES))
    lanes = flat.reshape(m, c, -1, LANES).permute(1, 3, 0, 2).reshape(c, LANES, -1)
    lanes = torch.cat((start[:, :, None], lanes), 2)
    # cumsum adds one by one on the CPU, sum does not; elsewhere no order is promised.
    return lanes.cumsum(2)[:, :, -1] if lanes.device.type == "cpu" else lanes.sum(2)


def _add_lanes(total: Tensor) -> Tensor:
    width = LANES
    while width > 1:
        width //= 2
        total = total[:, :width] + total[:, width : 2 * width]
    return total[:, 0]


def _per_channel(values_C: Tensor, like: Tensor, channel_dim: int = 1) -> Tensor:
    shape = [1] * like.dim()
    shape[channel_dim] = -1
    return values_C.reshape(shape)


def channel_stats(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean [C], biased variance [C]) of ``y`` [M, C, ...], from float64 sums."""
    count = y.numel() // max(1, y.shape[1])
    mean, square = channel_sums(y) / count, channel_sums(y.double() * y.double()) / count
    return mean.to(y.dtype), _variance(mean, square).to(y.dtype)


def channel_lanes_(y: Tensor, lanes: Tensor) -> None:
    """Add ``y`` [M, C, ...] and its squares to ``lanes`` [2, C, LANES], float64."""
    lanes[0] = _to_lanes(y, lanes[0])
    lanes[1] = _to_lanes(y.double() * y.double(), lanes[1])


def lane_stats(lanes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (mean [C], biased variance [C]), float64, of ``count`` values a channel."""
    mean, square = _add_lanes(lanes[0]) / count, _add_lanes(lanes[1]) / count
    return mean, _variance(mean, square)


def _variance(mean: Tensor, square: Tensor) -> Tensor:
    variance = square - mean * mean
    return torch.where(variance > 0.0, variance, 0.0 * square)  # keeps NaN


def norm_forward(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``y * scale + shift`` per channel of ``y`` [M, C, ...]."""
    return y * _per_channel(scale, y) + _per_channel(shift, y)


def norm_backward_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    first: int = 0,
    over_y: bool = False,
) -> tuple[Tensor, Tensor]:
    """Overwrite ``g``, or ``y`` itself, with the gradient of ``y``; return (g_weight [C], g_bias [C]).

    ``y`` is the channels from ``first`` on of ``g``.
    """
    g = g.narrow(1, first, y.shape[1])
    count = y.numel() // max(1, y.shape[1])
    d = y - _per_channel(mean, y)
    sum_g = channel_sums(g, backward=True)
    sum_gd = channel_sums(g.double() * d.double(), backward=True)
    results = _gradients(sum_g, sum_gd, inv_std, count)
    norm_backward_apply_(y, g, mean, inv_std, weight, results, over_y)
    return results[2], results[3]


def gradient_lanes_(y: Tensor, g: Tensor, mean: Tensor, lanes: Tensor) -> None:
    """Add ``g`` and ``g * (y - mean)`` of [M, C, ...] to ``lanes`` [2, C, LANES], float64, from the last plane on."""
    d = y - _per_channel(mean, y)
    lanes[0] = _to_lanes(g.flip(0), lanes[0])
    lanes[1] = _to_lanes((g.double() * d.double()).flip(0), lanes[1])


def lane_gradients(lanes: Tensor, inv_std: Tensor, count: int) -> Tensor:
    """Return a and b, which `norm_backward_apply_` needs, and the norm's g_weight and g_bias, from ``lanes`` [4, C]."""
    return _gradients(_add_lanes(lanes[0]), _add_lanes(lanes[1]), inv_std, count)


def _gradients(sum_g: Tensor, sum_gd: Tensor, inv_std: Tensor, count: int) -> Tensor:
    inv = inv_std.double()
    b = ((inv * sum_gd) * inv) / count
    return torch.stack([sum_g / count, b, sum_gd * inv, sum_g]).to(inv_std.dtype)


def norm_backward_apply_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    results: Tensor,
    over_y: bool,
) -> None:
    """Overwrite ``g``, or ``y``, with the gradient of ``y`` [M, C, ...]; ``results`` [4, C] as `lane_gradients`."""
    a, b = _per_channel(results[0], y), _per_channel(results[1], y)
    d = y - _per_channel(mean, y)
    found = ((g - a) - d * b) * _per_channel(weight * inv_std, y)
    (y if over_y else g).copy_(found)
