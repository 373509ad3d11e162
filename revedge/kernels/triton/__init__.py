"""The operators in Triton, for CUDA tensors: float32, contiguous, same signatures as the C calls.

Imported by the dispatcher when the first CUDA tensor arrives, and only if Triton is installed.
Every rounding is the reference's (no fused multiply-add, exact division), so results are equal bit
for bit, except where a sum runs over a channel: norm.py has its order and the tolerance.
TRITON_INTERPRET=1, set before the import, runs the same code on the CPU.
"""

from revedge.kernels.triton.bits import pack_bits, unpack_bits
from revedge.kernels.triton.grid import grid_add_
from revedge.kernels.triton.neuron import neuron_backward, neuron_backward_, neuron_forward
from revedge.kernels.triton.norm import channel_stats, norm_backward_, norm_forward
from revedge.kernels.triton.norm_neuron import (
    norm_neuron_backward_,
    norm_neuron_forward,
    norm_neuron_pack_,
    norm_neuron_span_backward_,
)
from revedge.kernels.triton.norm_neuron_pool import (
    average_bits,
    norm_neuron_pool_,
    norm_neuron_pool_backward_,
)
from revedge.kernels.triton.reversible import (
    reversible_backward,
    reversible_backward_,
    reversible_forward,
    reversible_forward_stored,
    reversible_reconstruct,
    reversible_stored_backward,
    reversible_stored_backward_,
)

__all__ = [
    "average_bits",
    "channel_stats",
    "grid_add_",
    "neuron_backward",
    "neuron_backward_",
    "neuron_forward",
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
    "reversible_reconstruct",
    "reversible_stored_backward",
    "reversible_stored_backward_",
    "unpack_bits",
]
