"""The head of a unit: batch normalization and neuron, forward and hand-written backward.

A `Stats` is all that normalization keeps between forward and backward: two numbers per channel. The recompute in the
backward pass uses it, so batch statistics are taken, and running statistics updated, exactly once.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from revedge import kernels
from revedge.engine.output import Output
from revedge.engine.pooled import fire_pooled, gradient_room, window_of
from revedge.engine.signal import Signal
from revedge.engine.unit import INPUT_GRID_BITS, Unit, unfold_time
from revedge.engine.vjp import Gradients, add_gradient
from revedge.errors import ReversibilityError, UsageError
from revedge.neurons import BaseNode, ParametricLIFNode, ReversibleNode

# Rebuilding (X - bias) / weight from X on the 2**-18 grid is then right to 2**-13.
_SMALLEST_GAIN = 2.0**-6
_PIECE = 1 << 15


class Stats(NamedTuple):
    """What normalization needs again: mean ``[C]``, variance ``[C]``, and whether they were those of this batch."""

    mean: Tensor
    var: Tensor
    of_batch: bool

    def slab(self, first: int, count: int) -> "Stats":
        """Those of ``count`` channels from ``first`` on."""
        part = slice(first, first + count)
        return Stats(self.mean[part], self.var[part], self.of_batch)


def of_batch(norm: _BatchNorm) -> bool:
    """Whether ``norm`` takes the statistics of the batch it is given now."""
    return norm.training or norm.running_mean is None or norm.running_var is None


def take_stats(norm: _BatchNorm, y: Tensor, sums: kernels.ChannelSums | None = None) -> Stats:
    """Statistics of ``y`` ``[T, B, C, ...]``; in training they also move the running ones, once.

    ``sums``, if they were taken while ``y`` was computed, spare a sweep over it.
    """
    taken = None if sums is None or not of_batch(norm) else Stats(*sums.stats(), of_batch=True)
    stats = slab_stats(norm, 0, y) if taken is None else taken
    return gather_stats(norm, [stats], y.numel() // y.shape[2])


def slab_stats(norm: _BatchNorm, first: int, y: Tensor) -> Stats:
    """Statistics of the channels from ``first`` on; moves nothing."""
    if of_batch(norm):
        return Stats(*kernels.channel_stats(y.flatten(0, 1)), of_batch=True)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    frozen = Stats(norm.running_mean, norm.running_var, of_batch=False).slab(first, y.shape[2])
    # Copies, as they may move before backward.
    return frozen._replace(mean=frozen.mean.clone(), var=frozen.var.clone())


def sums_for(norm: _BatchNorm | None, y: Output) -> kernels.ChannelSums | None:
    """Return what takes the sums of ``y`` while it is computed, if ``norm`` wants them; on a GPU a sweep is cheaper."""
    if norm is None or not of_batch(norm) or y.on_gpu:
        return None
    return kernels.ChannelSums()


def gather_stats(norm: _BatchNorm, parts: list[Stats], count: int) -> Stats:
    """One of several slabs, each of ``count`` values a channel; in training it moves the running statistics."""
    stats = parts[0]
    if len(parts) > 1:
        mean, var = torch.cat([part.mean for part in parts]), torch.cat([p.var for p in parts])
        stats = Stats(mean, var, stats.of_batch)
    if stats.of_batch and count == 1:
        raise UsageError(
            "a batch norm in training is given one value per channel, which has no variance; "
            "use a batch of 2 or more, more time steps, or norm.eval()"
        )
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        momentum = (
            norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        )
        norm.running_mean.lerp_(stats.mean, momentum)
        norm.running_var.lerp_(stats.var * (count / max(count - 1, 1)), momentum)
    return stats


def affine(norm: _BatchNorm, stats: Stats) -> tuple[Tensor, Tensor, Tensor]:
    """Return scale, shift and inverse deviation, each ``[C]``."""
    return kernels.norm_affine(stats.mean, stats.var, norm.weight, norm.bias, norm.eps)


def fire(unit: Unit, y: Tensor, stats: Stats | None, *, pack: bool) -> Signal:
    """Normalize ``y`` ``[T, B, ...]``, let the neuron answer it over all of T from rest, and pool where that is one.

    ``pack`` asks for one bit per spike; what is not 0 or 1 stays float32.
    """
    if unit.neuron is None:
        return Signal(y.shape, dense=y if unit.norm is None else _normalized(unit.norm, y, stats))
    if isinstance(unit.neuron, ReversibleNode):
        out, membranes = unit.neuron.sequence(neuron_input(unit, y, stats))
        return Signal(y.shape, dense=out, membranes=membranes)
    window = head_window(unit, y.shape, stats)
    if window is not None:
        norm = None if unit.norm is None else affine(unit.norm, _given(stats))[:2]
        return fire_pooled(unit, y, norm, window, pack=pack)
    params = unit.neuron.params()
    if unit.norm is None:
        s, _ = kernels.neuron_forward(y, None, params, pack=pack, state=False)
    else:
        scale, shift, _ = affine(unit.norm, _given(stats))
        s, _ = kernels.norm_neuron_forward(y, scale, shift, None, params, pack=pack, state=False)
    return Signal(y.shape, bits=s) if pack else Signal(y.shape, dense=s)


def head_window(unit: Unit, shape: torch.Size, stats: Stats | None) -> kernels.Window | None:
    """Return the window of the pool that `fire` and `fire_backward_` take along, if any; see `window_of`."""
    return window_of(unit, shape, batch_stats=stats is not None and stats.of_batch)


def neuron_input(unit: Unit, y: Tensor, stats: Stats | None) -> Tensor:
    """Input of a reversible neuron: normalized ``y`` on a grid, so that the neuron gives it back bit for bit."""
    if unit.norm is None:
        return y
    scale, shift, _ = affine(unit.norm, _given(stats))
    x = kernels.grid_add(None, y.flatten(0, 1), scale, shift, bits=INPUT_GRID_BITS)
    return unfold_time(x, y)


def fire_backward_(
    unit: Unit,
    y: Tensor | None,
    s: Signal | None,
    stats: Stats | None,
    g: Tensor,
    gradients: Gradients,
    *,
    y_is_free: bool = False,
) -> Tensor:
    """Return the gradient of ``y``; overwrites ``g`` ``[T, B, ...]``, the gradient of what `fire` gave out.

    ``y`` is what the unit normalizes, which ``y_is_free`` allows to overwrite; ``s`` is what a reversible neuron gave
    out (others do not need it).
    """
    if isinstance(unit.neuron, ReversibleNode):
        return _reversible_backward_(unit, unit.neuron, s, stats, g, gradients)
    if unit.neuron is None and unit.norm is None:
        return g
    assert y is not None
    if unit.neuron is None:
        return norm_backward_(unit.norm, y, g, _given(stats), gradients)
    params, window = unit.neuron.params(), head_window(unit, y.shape, stats)
    if unit.norm is None and window is not None:
        g_pooled, g = g, gradient_room(y, free=y_is_free)
        _, _, g_leak = kernels.norm_neuron_pool_backward_(y, g_pooled, g, (), params, window)
    elif unit.norm is None:
        g, _, g_leak = kernels.neuron_backward_(y, None, g, None, params, state=False)
    elif stats is not None and stats.of_batch:
        norm = (stats.mean, _inv_std(unit.norm, stats), unit.norm.weight, unit.norm.bias)
        if window is None:
            g_weight, g_bias, g_leak = kernels.norm_neuron_backward_(y, g, *norm, params)
        else:
            g_pooled, g = g, gradient_room(y, free=y_is_free)
            g_weight, g_bias, g_leak = kernels.norm_neuron_pool_backward_(
                y, g_pooled, g, norm, params, window
            )
        add_gradient(gradients, unit.norm.weight, g_weight)
        add_gradient(gradients, unit.norm.bias, g_bias)
    else:
        z = _normalized(unit.norm, y, stats)
        g, _, g_leak = kernels.neuron_backward_(z, None, g, None, params, state=False)
        g = norm_backward_(unit.norm, y, g, _given(stats), gradients)
    add_leak_gradient(unit.neuron, g_leak, gradients)
    return g


def norm_backward_(
    norm: _BatchNorm | None,
    y: Tensor,
    g: Tensor,
    stats: Stats,
    gradients: Gradients,
    *,
    over_y: bool = False,
) -> Tensor:
    """Backward of normalization alone: return the gradient of ``y`` ``[T, B, C, ...]``, written over ``g``.

    ``over_y``, with the statistics of the batch: written over ``y`` instead.
    """
    assert norm is not None
    inv_std = _inv_std(norm, stats)
    y_flat, g_flat = y.flatten(0, 1), g.flatten(0, 1)
    if stats.of_batch:
        g_weight, g_bias = kernels.norm_backward_(
            y_flat, g_flat, stats.mean, inv_std, norm.weight, over_y=over_y
        )
    else:  # constants: no gradient flows through the statistics
        shape, axes = _channel_shape(y_flat), [d for d in range(y_flat.dim()) if d != 1]
        if not norm.weight.requires_grad:  # a norm that is fixed altogether
            g_flat.mul_((norm.weight * inv_std).view(shape))
            return g
        g_bias = g_flat.sum(axes)
        g_weight = (g_flat * ((y_flat - stats.mean.view(shape)) * inv_std.view(shape))).sum(axes)
        g_flat.mul_((norm.weight * inv_std).view(shape))
    add_gradient(gradients, norm.weight, g_weight)
    add_gradient(gradients, norm.bias, g_bias)
    return y if over_y else g


def _reversible_backward_(
    unit: Unit,
    neuron: ReversibleNode,
    s: Signal | None,
    stats: Stats | None,
    g: Tensor,
    gradients: Gradients,
) -> Tensor:
    """From Y alone: X by forward-time reconstruction, and x-hat of the norm as (X - bias) / weight."""
    assert s is not None
    assert s.dense is not None
    x = neuron.sequence_backward_(s.dense, s.membranes, g)
    if unit.norm is None:
        return g
    norm, given = unit.norm, _given(stats)
    if not bool((norm.weight.detach().abs() >= _SMALLEST_GAIN).all()):
        raise ReversibilityError(
            f"a batch-norm weight of {norm.weight.detach().abs().min():.1e} is below "
            f"{_SMALLEST_GAIN:.1e}, so its input cannot be rebuilt from the reversible neuron; "
            "take an LIF node, or no weight decay on batch norm"
        )
    if not given.of_batch:
        raise ReversibilityError(
            "a reversible neuron behind frozen batch norm has no backward; keep the batch norm in train mode"
        )
    inverse = 1.0 / norm.weight.detach()
    weight = norm.weight.detach() * norm.weight.detach() * _inv_std(norm, given)
    g_weight, g_bias = kernels.norm_backward_(
        x.flatten(0, 1), g.flatten(0, 1), norm.bias.detach(), inverse, weight
    )  # fmt: skip
    add_gradient(gradients, norm.weight, g_weight)
    add_gradient(gradients, norm.bias, g_bias)
    return g


def add_leak_gradient(
    neuron: BaseNode | ReversibleNode, g_leak: Tensor | None, gradients: Gradients
) -> None:
    """Add the gradient of a learnable leak, of which ``g_leak`` [B, ...] holds each neuron's part."""
    if g_leak is not None and isinstance(neuron, ParametricLIFNode):
        leak = torch.sigmoid(neuron.w.detach())
        # In pieces: torch widens what it sums to float64 first, behind the planner's back.
        pieces = [piece.sum(dtype=torch.float64) for piece in g_leak.flatten().split(_PIECE)]
        total = torch.stack(pieces).sum().to(leak.dtype)
        add_gradient(gradients, neuron.w, (total * leak * (1.0 - leak)).reshape(neuron.w.shape))


def _normalized(norm: _BatchNorm, y: Tensor, stats: Stats | None) -> Tensor:
    scale, shift, _ = affine(norm, _given(stats))
    return unfold_time(kernels.norm_forward(y.flatten(0, 1), scale, shift), y)


def _inv_std(norm: _BatchNorm, stats: Stats) -> Tensor:
    return affine(norm, stats)[2]


def _given(stats: Stats | None) -> Stats:
    assert stats is not None
    return stats


def _channel_shape(y: Tensor) -> tuple[int, ...]:
    return (1, -1) + (1,) * (y.dim() - 2)
