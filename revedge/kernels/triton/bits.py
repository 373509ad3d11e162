"""Spikes at one bit each; the definition is reference/bits.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from revedge.kernels.triton._launch import TILE, launch


@triton.jit
def bytes_of(ones, BYTES: tl.constexpr):
    """Return [BYTES] bytes, as int32, of [8 * BYTES] zeros and ones; the first is the lowest bit."""
    shifted = tl.reshape(ones.to(tl.int32), [BYTES, 8]) << tl.arange(0, 8)[None, :]
    return tl.sum(shifted, axis=1)


@triton.jit
def _pack(s, bits, N, BYTES: tl.constexpr):
    first = tl.program_id(0) * BYTES
    i = first * 8 + tl.arange(0, BYTES * 8)
    byte = first + tl.arange(0, BYTES)
    ones = tl.load(s + i, mask=i < N, other=0) != 0
    tl.store(bits + byte, bytes_of(ones, BYTES).to(tl.uint8), mask=byte * 8 < N)


@triton.jit
def _unpack(bits, s, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(bits + i // 8, mask=i < N, other=0).to(tl.int32)
    tl.store(s + i, ((byte >> (i % 8)) & 1).to(tl.float32), mask=i < N)


@triton.jit
def _merge(ones, bits, total, C, S, ALL, FIRST, BYTES: tl.constexpr):
    byte = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
    element = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    c = (element // S) % ALL - FIRST
    ours = (element < total) & (c >= 0) & (c < C)
    at = (element // (S * ALL)) * (C * S) + c * S + element % S
    fired = tl.load(ones + at, mask=ours, other=0).to(tl.int32)
    place = tl.where(ours | (element >= total), 1, 0) << tl.arange(0, 8)[None, :]
    mask = tl.sum(place, axis=1)  # ours, and zeros behind the last
    packed = tl.sum(place * fired, axis=1)
    there = (mask != 0) & (byte * 8 < total)
    old = tl.load(bits + byte, mask=there, other=0).to(tl.int32)
    tl.store(bits + byte, (old - (old & mask) + packed).to(tl.uint8), mask=there)


def merge_bits(
    ones: Tensor, bits: Tensor, sizes: tuple[int, int, int], slab: tuple[int, int]
) -> None:
    """Write ``ones`` [M, C, S], bytes of 0 and 1, as the bits of channels from FIRST on of [M, ALL, S]."""
    m, channels, size = sizes
    total = m * slab[0] * size
    programs = triton.cdiv(total, TILE)
    launch(_merge, programs, ones, bits, total, channels, size, *slab, BYTES=TILE // 8)


def pack_bits(s: Tensor) -> Tensor:
    """See reference.pack_bits; ``s`` is float32, or uint8 from the neurons."""
    bits = s.new_empty((s.numel() + 7) // 8, dtype=torch.uint8)
    launch(_pack, triton.cdiv(s.numel(), TILE), s, bits, s.numel(), BYTES=TILE // 8)
    return bits


def unpack_bits(bits: Tensor, shape: list[int]) -> Tensor:
    """See reference.unpack_bits."""
    s = bits.new_empty(shape, dtype=torch.float32)
    launch(_unpack, triton.cdiv(s.numel(), TILE), bits, s, s.numel(), BLOCK=TILE)
    return s
