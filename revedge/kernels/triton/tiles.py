"""Where the planes of a slab of channels lie: in y [M, C, S], and among all channels [M, ALL, S]."""

import triton
import triton.language as tl


@triton.jit
def tile_at(rows, C, S, ALL, FIRST, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return, for this program's tile of the M C planes of a slab that starts at channel FIRST:

    offsets in [M, C, S], offsets in [M, ALL, S], which elements exist, and channels [ROWS, 1].
    """
    across = tl.cdiv(S, COLUMNS)
    row = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    c = row % C
    whole = (row // C) * ALL + FIRST + c
    return row * S + column, whole * S + column, (row < rows) & (column < S), c
