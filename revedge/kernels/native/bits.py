"""Calls of the C library: spikes as bits."""

import torch
from torch import Tensor

from revedge.kernels.native._call import call


def pack_bits(s: Tensor) -> Tensor:
    """See reference.pack_bits."""
    bits = s.new_empty((s.numel() + 7) // 8, dtype=torch.uint8)
    call("pack_bits", [s, bits], [s.numel()], [])
    return bits


def unpack_bits(bits: Tensor, shape: list[int]) -> Tensor:
    """See reference.unpack_bits."""
    s = torch.empty(shape, dtype=torch.float32)
    call("unpack_bits", [bits, s], [s.numel()], [])
    return s
