"""Calls of the C library: batch norm by its parts."""

import torch
from torch import Tensor

from revedge.kernels._shapes import check_shape, check_slab
from revedge.kernels.native._call import call, planes
from revedge.kernels.reference.norm import LANES


def channel_stats(y: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.channel_stats."""
    lanes = y.new_zeros((2, y.shape[1], LANES), dtype=torch.float64)
    channel_lanes_(y, lanes)
    return lane_stats(lanes, y.numel() // max(1, y.shape[1]))


def channel_lanes_(y: Tensor, lanes: Tensor) -> None:
    """See reference.channel_lanes_."""
    check_shape("lanes", lanes, (2, y.shape[1], LANES))
    call("channel_lanes", [y, lanes], planes(y, 1), [])


def lane_stats(lanes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See reference.lane_stats; float32."""
    channels = lanes.shape[1]
    check_shape("lanes", lanes, (2, channels, LANES))
    mean, variance = (lanes.new_empty(channels, dtype=torch.float32) for _ in range(2))
    call("lane_stats", [lanes, mean, variance], [channels, count], [])
    return mean, variance


def norm_forward(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """See reference.norm_forward."""
    z = torch.empty_like(y)
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_shape(name, tensor, y.shape[1:2])
    call("norm_forward", [y, scale, shift, z], planes(y, 1), [])
    return z


def norm_backward_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    first: int,
    over_y: bool = False,
) -> tuple[Tensor, Tensor]:
    """See reference.norm_backward_."""
    channels = check_slab("g", g, y, 1, first)
    for name, tensor in (("mean", mean), ("inv_std", inv_std), ("weight", weight)):
        check_shape(name, tensor, y.shape[1:2])
    g_weight, g_bias = torch.empty_like(weight), torch.empty_like(weight)
    tensors = [y, g, mean, inv_std, weight, g_weight, g_bias]
    call("norm_backward", tensors, [*planes(y, 1), channels, first, int(over_y)], [])
    return g_weight, g_bias


def gradient_lanes_(y: Tensor, g: Tensor, mean: Tensor, lanes: Tensor) -> None:
    """See reference.gradient_lanes_."""
    check_shape("g", g, y.shape)
    check_shape("mean", mean, y.shape[1:2])
    check_shape("lanes", lanes, (2, y.shape[1], LANES))
    call("gradient_lanes", [y, g, mean, lanes], planes(y, 1), [])


def lane_gradients(lanes: Tensor, inv_std: Tensor, count: int) -> Tensor:
    """See reference.lane_gradients; float32."""
    channels = lanes.shape[1]
    check_shape("lanes", lanes, (2, channels, LANES))
    check_shape("inv_std", inv_std, (channels,))
    results = lanes.new_empty((4, channels), dtype=torch.float32)
    call("lane_gradients", [lanes, inv_std, results], [channels, count], [])
    return results


def norm_backward_apply_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    results: Tensor,
    over_y: bool,
) -> None:
    """See reference.norm_backward_apply_."""
    check_shape("g", g, y.shape)
    check_shape("results", results, (4, y.shape[1]))
    for name, tensor in (("mean", mean), ("inv_std", inv_std), ("weight", weight)):
        check_shape(name, tensor, y.shape[1:2])
    tensors = [y, g, mean, inv_std, weight, results]
    call("norm_backward_apply", tensors, [*planes(y, 1), int(over_y)], [])
