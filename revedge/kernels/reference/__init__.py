"""The definition of every operator, in plain PyTorch.

The C code equals these functions bit for bit on float32, so each one fixes an order of operations
and uses only operations that IEEE 754 rounds exactly: ``+ - * /``, comparison, selection.
"""

from revedge.kernels.reference.bits import pack_bits, unpack_bits
from revedge.kernels.reference.grid import grid_add_
from revedge.kernels.reference.neuron import neuron_backward, neuron_backward_, neuron_forward
from revedge.kernels.reference.norm import (
    LANES,
    channel_lanes_,
    channel_stats,
    gradient_lanes_,
    lane_gradients,
    lane_stats,
    norm_backward_,
    norm_backward_apply_,
    norm_forward,
)
from revedge.kernels.reference.norm_neuron import (
    norm_neuron_backward_,
    norm_neuron_forward,
    norm_neuron_pack_,
    norm_neuron_span_backward_,
)
from revedge.kernels.reference.norm_neuron_pool import (
    average_bits,
    norm_neuron_pool_,
    norm_neuron_pool_backward_,
)
from revedge.kernels.reference.pool import max_pool, max_pool_backward
from revedge.kernels.reference.reversible import (
    reversible_backward,
    reversible_backward_,
    reversible_forward,
    reversible_forward_stored,
    reversible_inverse_printed,
    reversible_reconstruct,
    reversible_stored_backward,
    reversible_stored_backward_,
)
from revedge.kernels.reference.surrogates import exp_of_negative, surrogate_derivative

__all__ = [
    "LANES",
    "average_bits",
    "channel_lanes_",
    "channel_stats",
    "exp_of_negative",
    "gradient_lanes_",
    "grid_add_",
    "lane_gradients",
    "lane_stats",
    "max_pool",
    "max_pool_backward",
    "neuron_backward",
    "neuron_backward_",
    "neuron_forward",
    "norm_backward_",
    "norm_backward_apply_",
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
    "reversible_stored_backward",
    "reversible_stored_backward_",
    "surrogate_derivative",
    "unpack_bits",
]
