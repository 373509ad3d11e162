"""Batch norm by its parts. M planes (time and batch), C channels; float32."""

import torch
from torch import Tensor

from revedge.kernels import reference
from revedge.kernels._dispatch import register
from revedge.kernels.native import norm as native

_channel_stats = register(
    "channel_stats(Tensor y) -> (Tensor, Tensor)",
    reference=reference.channel_stats,
    native=native.channel_stats,
    meta=lambda y: (y.new_empty(y.shape[1]), y.new_empty(y.shape[1])),
)
_channel_lanes = register(
    "channel_lanes_(Tensor y, Tensor(a!) lanes) -> ()",
    reference=reference.channel_lanes_,
    native=native.channel_lanes_,
    meta=lambda y, lanes: None,
    dtypes=(torch.float32, torch.float64),
)
_lane_stats = register(
    "lane_stats(Tensor lanes, int count) -> (Tensor, Tensor)",
    reference=lambda lanes, count: tuple(a.float() for a in reference.lane_stats(lanes, count)),
    native=native.lane_stats,
    meta=lambda lanes, count: (
        lanes.new_empty(lanes.shape[1], dtype=torch.float32),
        lanes.new_empty(lanes.shape[1], dtype=torch.float32),
    ),
    dtypes=(torch.float64,),
)
_gradient_lanes = register(
    "gradient_lanes_(Tensor y, Tensor g, Tensor mean, Tensor(a!) lanes) -> ()",
    reference=reference.gradient_lanes_,
    native=native.gradient_lanes_,
    meta=lambda y, g, mean, lanes: None,
    dtypes=(torch.float32, torch.float64),
)
_lane_gradients = register(
    "lane_gradients(Tensor lanes, Tensor inv_std, int count) -> Tensor",
    reference=reference.lane_gradients,
    native=native.lane_gradients,
    meta=lambda lanes, inv_std, count: inv_std.new_empty((4, inv_std.numel())),
    dtypes=(torch.float64, torch.float32),
)
_norm_backward_apply = register(
    "norm_backward_apply_(Tensor(b!) y, Tensor(a!) g, Tensor mean, Tensor inv_std, Tensor weight,"
    " Tensor results, bool over_y) -> ()",
    reference=reference.norm_backward_apply_,
    native=native.norm_backward_apply_,
    meta=lambda y, g, mean, inv_std, weight, results, over_y: None,
)
_norm_forward = register(
    "norm_forward(Tensor y, Tensor scale, Tensor shift) -> Tensor",
    reference=reference.norm_forward,
    native=native.norm_forward,
    meta=lambda y, scale, shift: y.new_empty(y.shape),
)
_norm_backward = register(
    "norm_backward_(Tensor(b!) y, Tensor(a!) g, Tensor mean, Tensor inv_std, Tensor weight, int first,"
    " bool over_y=False) -> (Tensor, Tensor)",
    reference=reference.norm_backward_,
    native=native.norm_backward_,
    meta=lambda y, g, mean, inv_std, weight, first, over_y=False: (
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


class ChannelSums:
    """The statistics of a tensor [M, C, ...] that comes in chunks of M, in order: `channel_stats`, bit for bit.

    A chunk is looked at when it has just been made, and is still in the cache.
    Memory: 256 bytes a channel.
    """

    def __init__(self) -> None:
        self._lanes: Tensor | None = None
        self._count = 0

    @torch.no_grad()
    def add(self, y: Tensor) -> None:
        """Add a chunk [m, C, ...], contiguous."""
        if self._lanes is None:
            shape = (2, y.shape[1], reference.LANES)
            self._lanes = y.new_zeros(shape, dtype=torch.float64)
        _channel_lanes(y, self._lanes)
        self._count += y.numel() // max(1, y.shape[1])

    @torch.no_grad()
    def stats(self) -> tuple[Tensor, Tensor]:
        """Return (mean [C], biased variance [C]) of all chunks; at least one."""
        assert self._lanes is not None
        mean, variance = _lane_stats(self._lanes, self._count)
        return mean, variance


class GradientSums:
    """The backward of a batch norm over a tensor [M, C, ...] that comes in pieces of M, twice: `norm_backward_`, bit
    for bit on a CPU (elsewhere to rounding).

    First `add` all pieces, from the last to the first, then `apply_` to each in any order.

    Args:
        mean, inv_std, weight: the norm [C].

    Memory: 256 bytes a channel until the first look at a result, 16 from then on.
    """

    def __init__(self, mean: Tensor, inv_std: Tensor, weight: Tensor) -> None:
        self._norm = (mean, inv_std, weight.detach())
        shape = (2, mean.numel(), reference.LANES)
        self._lanes: Tensor | None = mean.new_zeros(shape, dtype=torch.float64)
        self._count = 0
        self._results: Tensor | None = None

    @torch.no_grad()
    def add(self, y: Tensor, g: Tensor) -> None:
        """Add a piece of what the norm was given, and of the gradient of its result, each [m, C, ...]."""
        assert self._lanes is not None
        _gradient_lanes(y, g, self._norm[0], self._lanes)
        self._count += y.numel() // max(1, y.shape[1])

    @torch.no_grad()
    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return (g_weight [C], g_bias [C]); all pieces have been added."""
        results = self._found()
        return results[2].clone(), results[3].clone()

    @torch.no_grad()
    def apply_(self, y: Tensor, g: Tensor, *, over_y: bool = False) -> Tensor:
        """Return the gradient of the piece ``y``, written over ``g``, or over ``y`` itself."""
        _norm_backward_apply(y, g, *self._norm, self._found(), over_y)
        return y if over_y else g

    def _found(self) -> Tensor:
        found = self._results
        if found is None:
            assert self._lanes is not None
            found = _lane_gradients(self._lanes, self._norm[1], self._count)
            self._results, self._lanes = found, None
        return found


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
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    *,
    first: int = 0,
    over_y: bool = False,
) -> tuple[Tensor, Tensor]:
    """Back-propagate through a batch norm that used the statistics of its batch.

    Args:
        y: what the norm was given [M, C, ...].
        g: gradient of its result, contiguous; overwritten with that of y. It may have more channels
            than y, which are then left alone.
        mean, inv_std, weight: the norm [C].
        first: the channel of ``g`` that belongs to the first of y.
        over_y: leave ``g`` as it is, and overwrite ``y``.

    Returns:
        (g_weight [C], g_bias [C]).
    """
    g_weight, g_bias = _norm_backward(y, g, mean, inv_std, weight, first, over_y)
    return g_weight, g_bias
