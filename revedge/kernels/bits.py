"""Spikes at one bit each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from revedge.kernels import reference
from revedge.kernels._dispatch import register
from revedge.kernels.native import bits as native

_pack_bits = register(
    "pack_bits(Tensor s) -> Tensor",
    reference=reference.pack_bits,
    native=native.pack_bits,
    meta=lambda s: s.new_empty((s.numel() + 7) // 8, dtype=torch.uint8),
)
_unpack_bits = register(
    "unpack_bits(Tensor bits, int[] shape) -> Tensor",
    reference=reference.unpack_bits,
    native=native.unpack_bits,
    meta=lambda bits, shape: bits.new_empty(shape, dtype=torch.float32),
    dtypes=(torch.uint8,),
)


@torch.no_grad()
def pack_bits(s: Tensor) -> Tensor:
    """Return uint8 [ceil(numel / 8)]; element 8 j + k of ``s`` is bit k of byte j, set if not 0."""
    result: Tensor = _pack_bits(s)
    return result


@torch.no_grad()
def unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the float32 tensor of exact 0.0 and 1.0 that was packed.

    Args:
        bits: uint8, at least ceil(prod(shape) / 8) of them; a slice at a byte unpacks a part.
        shape: of the result.

    Raises:
        ValueError: too few bits.
    """
    numel = 1
    for size in shape:
        numel *= size
    if bits.numel() * 8 < numel:
        raise ValueError(f"{bits.numel()} bytes of spikes hold no {tuple(shape)}; {numel} bits do")
    result: Tensor = _unpack_bits(bits, list(shape))
    return result
