"""Batch norm and neuron together; the definition is in reference/norm.py. y: [T, B, C, ...]; bits and
g may have more channels, of which those of y are a slab.

The normalized tensor never stands in memory: the neuron scales its input on the way in. Backward
first writes the neuron's gradient over ``g``, then takes the two sums of each channel, then applies
them. Taking the sums in the first of these three would save a reading of y and g, but add in an
order that knows T, and this operator must give the bits of its parts in turn.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from revedge.kernels._shapes import check_range, check_shape, check_slab
from revedge.kernels.triton.neuron import backward, forward, spikes_like
from revedge.kernels.triton.norm import norm_backward_

_Floats = Sequence[float]


def norm_neuron_forward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    p: _Floats,
    pack: bool,
    state: bool,
) -> tuple[Tensor, Tensor]:
    """See reference.norm_neuron_forward."""
    s = spikes_like(y, pack)
    v = forward(y, (scale, shift), v0, s, p, pack=pack, state=state)
    return s, v


def norm_neuron_pack_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    p: _Floats,
    bits: Tensor,
    channels: int,
    first: int,
) -> None:
    """See reference.norm_neuron_pack_."""
    check_range("bits", channels, y.shape[2], first)
    total = math.prod(y.shape[:2]) * channels * math.prod(y.shape[3:])
    check_shape("bits", bits, [(total + 7) // 8])
    forward(y, (scale, shift), None, bits, p, pack=True, state=False, slab=(channels, first))


def norm_neuron_backward_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    p: _Floats,
    first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.norm_neuron_backward_."""
    check_slab("g_s", g, y, 2, first)
    norm = {"mean": mean, "inv_std": inv_std, "weight": weight, "bias": bias}
    for name, tensor in norm.items():
        check_shape(name, tensor, y.shape[2:3])
    scale = weight * inv_std
    shift = bias - mean * scale
    _, g_leak = backward(y, (scale, shift), None, g, g, None, p, state=False, first=first)
    flat = g.flatten(0, 1)
    g_weight, g_bias = norm_backward_(y.flatten(0, 1), flat, mean, inv_std, weight, first)
    return g_weight, g_bias, g_leak


def norm_neuron_span_backward_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    g: Tensor,
    g_vT: Tensor | None,
    p: _Floats,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See reference.norm_neuron_span_backward_."""
    check_shape("g_s", g, y.shape)
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_shape(name, tensor, y.shape[2:3])
    return backward(y, (scale, shift), v0, g, g, g_vT, p, state=True, leak=leak)
