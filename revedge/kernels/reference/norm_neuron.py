"""Batch norm and neuron in one. T time, B batch, C channels."""

from torch import Tensor

from revedge.kernels.params import NeuronParams
from revedge.kernels.reference.bits import pack_bits, unpack_bits
from revedge.kernels.reference.neuron import neuron_backward_, neuron_forward
from revedge.kernels.reference.norm import norm_backward_, norm_forward


def norm_neuron_forward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    p: NeuronParams,
    pack: bool,
    state: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return (spikes, or their bits, last membrane) of ``y`` [T, B, C, ...]."""
    z = norm_forward(y.flatten(0, 1), scale, shift).reshape(y.shape)
    return neuron_forward(z, v0, p, pack, state)


def norm_neuron_pack_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    p: NeuronParams,
    bits: Tensor,
    channels: int,
    first: int,
) -> None:
    """Write the bits of the spikes of ``y`` [T, B, C, ...], channels from ``first`` on, to ``bits``."""
    shape = [*y.shape[:2], channels, *y.shape[3:]]
    s = unpack_bits(bits, shape)
    s.narrow(2, first, y.shape[2]).copy_(norm_neuron_forward(y, scale, shift, None, p, False)[0])
    bits.copy_(pack_bits(s))


def norm_neuron_backward_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    p: NeuronParams,
    first: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite ``g``, of the spikes, with that of ``y``; return (g_weight, g_bias, g_leak).

    ``y`` is the channels from ``first`` on of ``g``.
    """
    g = g.narrow(2, first, y.shape[2])
    scale = weight * inv_std
    shift = bias - mean * scale
    y_MC = y.flatten(0, 1)
    z = norm_forward(y_MC, scale, shift).reshape(y.shape)
    _, g_leak = neuron_backward_(z, None, g, None, p)
    g_weight, g_bias = norm_backward_(y_MC, g.flatten(0, 1), mean, inv_std, weight)
    return g_weight, g_bias, g_leak


def norm_neuron_span_backward_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    g: Tensor,
    g_vT: Tensor | None,
    p: NeuronParams,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Overwrite ``g``, of the spikes, with that of the norm's result; return (g_v0, g_leak) as `neuron_backward_`."""
    z = norm_forward(y.flatten(0, 1), scale, shift).reshape(y.shape)
    return neuron_backward_(z, v0, g, g_vT, p, leak=leak)
