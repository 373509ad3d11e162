"""Operators: a PyTorch reference each, the definition, and C and Triton that equal it bit for bit.

Layout: T time first, B batch, C channels; float32, contiguous. Names that end in ``_`` overwrite
the gradient they are given. Nothing here is differentiable by autograd: the engine and the neuron
modules call forward and backward operators themselves.

The modules here are what others call; ``reference``, ``native`` (C) and ``triton`` have modules of the same names, and
_dispatch.py chooses among them.
"""

import revedge.need_torch  # noqa: F401
from revedge.kernels._native import native_status
from revedge.kernels._triton import triton_status
from revedge.kernels.bits import pack_bits, unpack_bits
from revedge.kernels.grid import grid_add, grid_round
from revedge.kernels.neuron import neuron_backward, neuron_backward_, neuron_forward
from revedge.kernels.norm import (
    ChannelSums,
    GradientSums,
    channel_stats,
    norm_affine,
    norm_backward_,
    norm_forward,
)
from revedge.kernels.norm_neuron import (
    norm_neuron_backward_,
    norm_neuron_forward,
    norm_neuron_pack_,
    norm_neuron_span_backward_,
)
from revedge.kernels.norm_neuron_pool import (
    Window,
    average_bits,
    norm_neuron_pool_,
    norm_neuron_pool_backward_,
)
from revedge.kernels.params import SURROGATES, NeuronParams, ReversibleParams
from revedge.kernels.pool import max_pool, max_pool_backward
from revedge.kernels.reversible import (
    reversible_backward,
    reversible_backward_,
    reversible_forward,
    reversible_forward_stored,
    reversible_inverse_printed,
    reversible_reconstruct,
)

__all__ = [
    "SURROGATES",
    "ChannelSums",
    "GradientSums",
    "NeuronParams",
    "ReversibleParams",
    "Window",
    "average_bits",
    "channel_stats",
    "grid_add",
    "grid_round",
    "max_pool",
    "max_pool_backward",
    "native_status",
    "neuron_backward",
    "neuron_backward_",
    "neuron_forward",
    "norm_affine",
    "norm_backward_",
    "norm_forward",
    "norm_neuron_backward_",
    "norm_neuron_forward",
    "norm_neuron_pack_",
    "norm_neuron_pool_",
    "norm_neuron_pool_backward_",
    "norm_neuron_span_backward_",
    "pack_bits",
    "reversible_backward",
    "reversible_backward_",
    "reversible_forward",
    "reversible_forward_stored",
    "reversible_inverse_printed",
    "reversible_reconstruct",
    "triton_status",
    "unpack_bits",
]
