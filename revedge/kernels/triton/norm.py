"""Batch norm by its parts; the definition is reference/norm.py. y, z: [M, C, S]; g: [M, ALL, S], of
which the C channels from FIRST on are worked on; everything else: [C].

A sum is taken in float64 in an order of its own, since the reference's, 16 lanes one after the
other, would leave a GPU idle. Tiles of ROWS planes by COLUMNS elements make 1024 lanes; the tiles
of a channel are cut into pieces; in a piece each lane adds its elements tile by tile; lanes, then
pieces, are added in pairs, j and j + half. The order depends on (M, S) only: neither on the GPU nor
on how many channels are worked on at once.

Against any other order, n elements: the float64 sums differ by at most 2 (n - 1) 2^-53 sum|v|, each
being within half of that of the true sum; for n = 2^20, 2.3e-10 of sum|v|. What is rounded to
float32 afterwards therefore differs by one unit in the last place, or where positive and negative
elements cancel, by that share of the mean |v|.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from revedge.kernels._shapes import check_shape, check_slab
from revedge.kernels.triton._launch import launch, pieces, planes, tile, tiles
from revedge.kernels.triton.tiles import tile_at


@triton.jit
def _sum_in_pairs(lanes, LANES: tl.constexpr, HALVINGS: tl.constexpr):
    """Return the sum of ``lanes`` [LANES = 2^HALVINGS]: j and j + half are added, again and again."""
    for step in tl.static_range(HALVINGS):  # pyright: ignore[reportGeneralTypeIssues]
        halves = tl.permute(tl.reshape(lanes, [2, LANES >> (step + 1)]), [1, 0])
        low, high = tl.split(halves)
        lanes = low + high
    return tl.sum(tl.reshape(lanes, [1]), axis=0)  # one lane is left


@triton.jit
def _sum_piece(
    y, g, mean, partial, M, C, S, ALL, FIRST, PIECES: tl.constexpr, GRADIENT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """Sums of y and y * y, or of g and g * (y - mean), over one piece of one channel."""
    c = tl.program_id(0) // PIECES
    piece = tl.program_id(0) % PIECES
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    across = tl.cdiv(S, COLUMNS)
    count = tl.cdiv(M, ROWS) * across
    each = tl.cdiv(count, PIECES)
    first_sum = tl.zeros([ROWS, COLUMNS], tl.float64)
    second_sum = tl.zeros([ROWS, COLUMNS], tl.float64)
    middle = 0.0
    if GRADIENT:
        middle = tl.load(mean + c)
    for index in range(piece * each, tl.minimum(piece * each + each, count)):
        m = (index // across) * ROWS + row
        i = (index % across) * COLUMNS + column
        there = (m < M) & (i < S)
        value = tl.load(y + (m * C + c) * S + i, mask=there, other=0.0)
        if GRADIENT:
            at = (m * ALL + FIRST + c) * S + i
            wide = tl.load(g + at, mask=there, other=0.0).to(tl.float64)
            second = wide * (value - middle).to(tl.float64)
        else:
            wide = value.to(tl.float64)
            second = wide * wide
        first_sum = first_sum + wide
        second_sum = second_sum + second
    at = c * PIECES + piece
    total = _sum_in_pairs(tl.reshape(first_sum, [LANES]), LANES, HALVINGS)
    tl.store(partial + at, total)
    total = _sum_in_pairs(tl.reshape(second_sum, [LANES]), LANES, HALVINGS)
    tl.store(partial + tl.num_programs(0) + at, total)


@triton.jit
def _finish(
    partial, inv_std, results, C, count, GRADIENT: tl.constexpr, PIECES: tl.constexpr,
    HALVINGS: tl.constexpr,
):  # fmt: skip
    """From the sums of a channel's pieces to mean and variance, or to what the gradient needs."""
    c = tl.program_id(0)
    at = c * PIECES + tl.arange(0, PIECES)
    first = _sum_in_pairs(tl.load(partial + at), PIECES, HALVINGS)
    second = _sum_in_pairs(tl.load(partial + C * PIECES + at), PIECES, HALVINGS)
    average = first / count
    if GRADIENT:
        inverse = tl.load(inv_std + c).to(tl.float64)
        tl.store(results + c, average.to(tl.float32))
        tl.store(results + C + c, (((inverse * second) * inverse) / count).to(tl.float32))
        tl.store(results + 2 * C + c, (second * inverse).to(tl.float32))
        tl.store(results + 3 * C + c, first.to(tl.float32))
    else:
        square = second / count
        variance = square - average * average
        variance = tl.where(variance > 0.0, variance, square * 0.0)  # keeps NaN
        tl.store(results + c, average.to(tl.float32))
        tl.store(results + C + c, variance.to(tl.float32))


@triton.jit
def _scale(y, scale, shift, z, rows, C, S, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at, _, there, c = tile_at(rows, C, S, C, 0, ROWS, COLUMNS)
    value = tl.load(y + at, mask=there, other=0.0)
    tl.store(z + at, value * tl.load(scale + c) + tl.load(shift + c), mask=there)


@triton.jit
def _apply(
    y, g, mean, inv_std, weight, results, rows, C, S, ALL, FIRST,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, OVER_Y: tl.constexpr,
):  # fmt: skip
    """The second sweep: g, or y, becomes ((g - a) - (y - mean) * b) * scale."""
    at, at_g, there, c = tile_at(rows, C, S, ALL, FIRST, ROWS, COLUMNS)
    d = tl.load(y + at, mask=there, other=0.0) - tl.load(mean + c)
    centred = tl.load(g + at_g, mask=there, other=0.0) - tl.load(results + c)
    scale = tl.load(weight + c) * tl.load(inv_std + c)
    found = (centred - d * tl.load(results + C + c)) * scale
    if OVER_Y:
        tl.store(y + at, found, mask=there)
    else:
        tl.store(g + at_g, found, mask=there)


def _sums(
    y: Tensor, g: Tensor | None, mean: Tensor | None, inv_std: Tensor | None, slab: tuple[int, int]
) -> Tensor:
    """Return [2, C] mean and variance, or, of a gradient, [4, C]: a, b, g_weight, g_bias."""
    m, channels, size = planes(y, 1)
    shape, parts = tile(size), pieces(tiles(m, size))
    partial = y.new_empty(2 * channels * parts, dtype=torch.float64)
    results = y.new_empty(2 if g is None else 4, channels)
    lanes = shape["ROWS"] * shape["COLUMNS"]
    gradient = g is not None
    launch(
        _sum_piece, channels * parts, y, y if g is None else g, y if mean is None else mean,
        partial, m, channels, size, *slab, PIECES=parts, GRADIENT=gradient, **shape, LANES=lanes,
        HALVINGS=lanes.bit_length() - 1,
    )  # fmt: skip
    launch(
        _finish, channels, partial, y if inv_std is None else inv_std, results, channels, m * size,
        GRADIENT=gradient, PIECES=parts, HALVINGS=parts.bit_length() - 1, num_warps=1,
    )  # fmt: skip
    return results


def channel_stats(y: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.channel_stats."""
    mean, variance = _sums(y, None, None, None, (y.shape[1], 0))
    return mean, variance


def norm_forward(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """See reference.norm_forward."""
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_shape(name, tensor, y.shape[1:2])
    m, channels, size = planes(y, 1)
    z = torch.empty_like(y)
    sizes = (m * channels, channels, size)
    launch(_scale, tiles(m * channels, size), y, scale, shift, z, *sizes, **tile(size))
    return z


def norm_backward_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    first: int,
    over_y: bool = False,
) -> tuple[Tensor, Tensor]:
    """See reference.norm_backward_."""
    slab = (check_slab("g", g, y, 1, first), first)
    for name, tensor in (("mean", mean), ("inv_std", inv_std), ("weight", weight)):
        check_shape(name, tensor, y.shape[1:2])
    m, channels, size = planes(y, 1)
    results = _sums(y, g, mean, inv_std, slab)
    launch(
        _apply, tiles(m * channels, size), y, g, mean, inv_std, weight, results, m * channels,
        channels, size, *slab, **tile(size), OVER_Y=over_y,
    )  # fmt: skip
    return results[2], results[3]
