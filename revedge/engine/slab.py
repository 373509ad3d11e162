"""Normalization and neuron, or the sum with the stream, on an output that comes in slabs of channels.

Each function equals its namesake on the whole tensor bit for bit: batch norm and neurons never look across channels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from revedge import kernels
from revedge.engine.fire import Stats, add_leak_gradient, gather_stats, of_batch, slab_stats
from revedge.engine.output import Output
from revedge.engine.pooled import packed, pooled_shape, window_of
from revedge.engine.signal import Signal
from revedge.engine.unit import GRID_BITS, Unit
from revedge.engine.vjp import Gradients, add_gradient
from revedge.errors import UsageError
from revedge.neurons import BaseNode


class Rounded(Output):
    """``round(norm(y))``, the output of a branch with a trailing norm, in the slabs of ``y``."""

    def __init__(self, y: Output, norm: _BatchNorm, stats: Stats) -> None:
        self._y, self._norm, self._stats = y, norm, stats
        self._tensor = None

    @property
    def sliced(self) -> bool:
        """See `Output`."""
        return self._tensor is None and self._y.sliced

    @property
    def shape(self) -> torch.Size:
        """See `Output`."""
        return self._y.shape

    def slabs(self) -> Iterator[tuple[int, Tensor]]:
        """See `Output`."""
        for first, slab in self._y.slabs():
            own = self._stats.slab(first, slab.shape[2])
            _add(self._norm, None, first, slab, own, slab, at=0, sign=1)
            yield first, slab
            del slab

    @property
    def on_gpu(self) -> bool:
        """See `Output`."""
        return self._y.on_gpu

    def whole(self, sums: kernels.ChannelSums | None = None) -> Tensor:
        """See `Output`."""
        if self._tensor is None:
            for first, slab in self._y.slabs():
                if self._tensor is None:
                    self._tensor = slab.new_empty(self.shape) if self._y.sliced else slab
                own = self._stats.slab(first, slab.shape[2])
                _add(self._norm, None, first, slab, own, self._tensor, at=first, sign=1)
                del slab
        assert self._tensor is not None
        if sums is not None:
            sums.add(self._tensor.flatten(0, 1))
        return self._tensor


def fires_by_slabs(unit: Unit, y: Output) -> bool:
    """Whether the unit can take ``y`` slab by slab."""
    return y.sliced and unit.spikes_are_bits


def fire_slabs(unit: Unit, y: Output, stats: Stats | None) -> tuple[Stats | None, Signal]:
    """As `take_stats` (unless they are given) and `fire` at one bit per spike."""
    assert isinstance(unit.neuron, BaseNode)
    shape, params, parts = y.shape, unit.neuron.params(), list[Stats]()
    bits: Tensor | None = None
    window = _window(unit, shape, stats)
    pooled = shape if window is None else pooled_shape(shape, window)
    one_by_one = window is None or window.average  # the bits of all spikes
    for first, slab in y.slabs():
        if bits is None:  # zeroed: two slabs may share a byte
            bits = packed(slab, shape if one_by_one else pooled)
        if unit.norm is None:  # times 1, plus 0: the same bits
            scale, shift = slab.new_ones(slab.shape[2]), slab.new_zeros(slab.shape[2])
        else:
            parts.append(_stats(unit.norm, first, slab, stats))
            scale, shift, _ = _affine(unit.norm, first, parts[-1])
        where = {"channels": shape[2], "first": first}
        if window is None or one_by_one:
            kernels.norm_neuron_pack_(slab, scale, shift, params, bits, **where)
        else:
            kernels.norm_neuron_pool_(slab, scale, shift, params, bits, window, **where)
        del slab  # before the next one is computed
    if stats is None and unit.norm is not None:
        stats = gather_stats(unit.norm, parts, shape.numel() // shape[2])
    unpooled = shape if window is not None and one_by_one else None
    return stats, Signal(pooled, bits=bits, window=window, unpooled=unpooled)


def fire_slabs_backward_(
    unit: Unit, y: Output, stats: Stats | None, g: Tensor, gradients: Gradients
) -> Tensor:
    """As `fire_backward_` with the statistics of the batch: ``g``, of what `fire` gave out, becomes that of ``y``."""
    assert isinstance(unit.neuron, BaseNode)
    params, parts = unit.neuron.params(), list[tuple[Tensor, Tensor]]()
    window, g_pooled = _window(unit, y.shape, stats), g
    if window is not None:
        g = g.new_empty(y.shape)
    # Its sum over neurons is taken once, as over a whole tensor.
    leaks = g.new_empty(g.shape[1:]) if params.learns_leak else None
    for first, slab in y.slabs():
        count = slab.shape[2]
        if unit.norm is None and window is not None:
            _, _, g_leak = kernels.norm_neuron_pool_backward_(
                slab, g_pooled, g, (), params, window, first=first
            )
        elif unit.norm is None:
            own = g[:, :, first : first + count]
            g_slab, _, g_leak = kernels.neuron_backward_(
                slab, None, own.contiguous(), None, params, state=False
            )
            own.copy_(g_slab)
            del own, g_slab
        else:
            assert stats is not None
            mean, _, _ = stats.slab(first, count)
            _, _, inv_std = _affine(unit.norm, first, stats.slab(first, count))
            norm = (mean, inv_std, *_channels(unit.norm, first, count))
            if window is None:
                found = kernels.norm_neuron_backward_(slab, g, *norm, params, first=first)
            else:
                found = kernels.norm_neuron_pool_backward_(
                    slab, g_pooled, g, norm, params, window, first=first
                )
            g_weight, g_bias, g_leak = found
            parts.append((g_weight, g_bias))
        if leaks is not None and g_leak is not None:
            leaks[:, first : first + count] = g_leak
        del slab
    if unit.norm is not None:
        _add_norm_gradients(unit.norm, parts, gradients)
    add_leak_gradient(unit.neuron, leaks, gradients)
    return g


def check_same_shape(stream: Tensor | None, added: torch.Size) -> None:
    """Raise `UsageError` unless the stream has the shape of what is added to it, or of a part of it."""
    if stream is not None and stream.shape != added:
        raise UsageError(
            f"a branch gives out {tuple(added)} to be added to a stream of {tuple(stream.shape)}, which a run does "
            "not do by broadcasting; leave the module out of apply, or grid=True"
        )


def add_slabs(
    norm: _BatchNorm, x: Tensor | None, y: Output, stats: Stats | None = None
) -> tuple[Tensor, Stats]:
    """Return ``x + round(norm(y))``, written over ``x`` (None means 0), and the statistics of ``y`` unless given."""
    check_same_shape(x, y.shape)
    out, parts = x, list[Stats]()
    for first, slab in y.slabs():
        if out is None:
            out = slab.new_empty(y.shape)
        parts.append(_stats(norm, first, slab, stats))
        _add(norm, x, first, slab, parts[-1], out, at=first, sign=1)
        del slab
    assert out is not None
    if stats is None:
        stats = gather_stats(norm, parts, out.numel() // out.shape[2])
    return out, stats


def undo_slabs_(
    norm: _BatchNorm, x: Tensor | None, y: Output, stats: Stats, g: Tensor, gradients: Gradients
) -> Tensor:
    """Take ``round(norm(y))`` off ``x``, if given, and turn ``g``, of that sum, into the gradient of ``y``."""
    parts = list[tuple[Tensor, Tensor]]()
    for first, slab in y.slabs():
        own = stats.slab(first, slab.shape[2])
        if x is not None:
            _add(norm, x, first, slab, own, x, at=first, sign=-1)
        weight, _ = _channels(norm, first, slab.shape[2])
        _, _, inv_std = _affine(norm, first, own)
        parts.append(
            kernels.norm_backward_(
                slab.flatten(0, 1), g.flatten(0, 1), own.mean, inv_std, weight, first=first
            )
        )
        del slab
    _add_norm_gradients(norm, parts, gradients)
    return g


def _add(
    norm: _BatchNorm,
    x: Tensor | None,
    first: int,
    slab: Tensor,
    stats: Stats,
    out: Tensor,
    *,
    at: int,
    sign: int,
) -> None:
    """Write ``x + sign * round(norm(slab))`` to the channels of ``out`` from ``at`` on."""
    scale, shift, _ = _affine(norm, first, stats)
    x_flat = None if x is None else x.flatten(0, 1)
    kernels.grid_add(
        x_flat, slab.flatten(0, 1), scale, shift,
        bits=GRID_BITS, sign=sign, out=out.flatten(0, 1), first=at,
    )  # fmt: skip


def _window(unit: Unit, shape: torch.Size, stats: Stats | None) -> kernels.Window | None:
    batch_stats = stats is not None and stats.of_batch
    if stats is None and unit.norm is not None:
        batch_stats = of_batch(unit.norm)
    return window_of(unit, shape, batch_stats=batch_stats)


def _stats(norm: _BatchNorm, first: int, slab: Tensor, stats: Stats | None) -> Stats:
    return slab_stats(norm, first, slab) if stats is None else stats.slab(first, slab.shape[2])


def _channels(norm: _BatchNorm, first: int, count: int) -> tuple[Tensor, Tensor]:
    part = slice(first, first + count)
    return norm.weight[part], norm.bias[part]


def _affine(norm: _BatchNorm, first: int, stats: Stats) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias = _channels(norm, first, stats.mean.numel())
    return kernels.norm_affine(stats.mean, stats.var, weight, bias, norm.eps)


def _add_norm_gradients(
    norm: _BatchNorm, parts: list[tuple[Tensor, Tensor]], gradients: Gradients
) -> None:
    add_gradient(gradients, norm.weight, torch.cat([weight for weight, _ in parts]))
    add_gradient(gradients, norm.bias, torch.cat([bias for _, bias in parts]))
