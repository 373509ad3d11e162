"""Spikes at one bit each: element ``8 j + k`` is bit ``k`` of byte ``j``."""

import torch
from torch import Tensor


def _weights(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


def pack_bits(s: Tensor) -> Tensor:
    """Return uint8 [ceil(numel / 8)]: a bit is set where ``s`` is not zero."""
    bits = (s.reshape(-1) != 0).to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8))
    return (bits.reshape(-1, 8) * _weights(s.device)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, shape: list[int]) -> Tensor:
    """Return float32 zeros and ones of ``shape``."""
    numel = 1
    for size in shape:
        numel *= size
    spread = (bits.reshape(-1, 1) & _weights(bits.device)) != 0
    return spread.reshape(-1)[:numel].to(torch.float32).reshape(shape)
