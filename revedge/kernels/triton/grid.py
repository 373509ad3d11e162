"""Sums on the grid of multiples of 2**-bits; the definition is reference/grid.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from revedge.kernels._shapes import check_shape, check_slab
from revedge.kernels.triton._launch import launch, planes, tile, tiles
from revedge.kernels.triton.tiles import tile_at


@triton.jit
def _round_even(q):
    """Half to even: from 2^23 on every float32 is an integer. The sign of zero stays."""
    size = tl.abs(q)
    rounded = tl.where(size < 8388608.0, (size + 8388608.0) - 8388608.0, size)
    return tl.where(q < 0.0, -rounded, tl.where(q == 0.0, q, rounded))


@triton.jit
def _grid_add(
    x, y, scale, shift, out, bad, rows, C, S, ALL, FIRST, up, down, sign, limit,
    HAS_X: tl.constexpr, AFFINE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y: [M, C, S]; x, out: [M, ALL, S]. Without a norm all is one plane."""
    at_y, at, there, c = tile_at(rows, C, S, ALL, FIRST, ROWS, COLUMNS)
    z = tl.load(y + at_y, mask=there, other=0.0)
    if AFFINE:
        z = z * tl.load(scale + c) + tl.load(shift + c)
    r = _round_even(z * up) * down
    if HAS_X:
        base = tl.load(x + at, mask=there, other=0.0)
    else:
        base = tl.zeros([ROWS, COLUMNS], tl.float32)
    value = base + r * sign
    tl.store(out + at, value, mask=there)
    outside = tl.where(tl.abs(value) < limit, 0, 1)  # NaN is outside, too
    if tl.max(tl.max(tl.where(there, outside, 0), axis=1), axis=0) == 1:
        tl.store(bad, 1)


def grid_add_(
    x: Tensor | None,
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    bits: int,
    sign: int,
    out: Tensor,
    first: int,
) -> bool:
    """See reference.grid_add_. Waits for the GPU, since the answer is a Python bool."""
    check_shape("x", x, out.shape)
    rows, channels, size, slab = 1, 1, y.numel(), (1, 0)
    affine = scale.numel() > 0
    if not affine:
        check_shape("out", out, y.shape)
    else:
        slab = (check_slab("out", out, y, 1, first), first)
        m, channels, size = planes(y, 1)
        rows = m * channels
        for name, tensor in (("scale", scale), ("shift", shift)):
            check_shape(name, tensor, y.shape[1:2])
    bad = torch.zeros(1, dtype=torch.int32, device=y.device)
    floats = [float(2**bits), float(2.0**-bits), float(sign), float(2 ** (23 - bits))]
    launch(
        _grid_add, tiles(rows, size), y if x is None else x, y, scale if affine else y,
        shift if affine else y, out, bad, rows, channels, size, *slab, *floats,
        HAS_X=x is not None, AFFINE=affine, **tile(size),
    )  # fmt: skip
    return not bool(bad)
