"""Exact residual sums: values on the grid of multiples of 2**-bits, |value| < 2**(23 - bits).

Sums and differences of such float32 values are exact, so ``x + round(f) - round(f)`` is x bit for
bit. That is what lets a residual stream be rebuilt backwards without a single flipped spike.
"""

import torch
from torch import Tensor

from revedge.errors import GridRangeError
from revedge.kernels import reference
from revedge.kernels._dispatch import register
from revedge.kernels.native import grid as native

_grid_add = register(
    "grid_add_(Tensor? x, Tensor y, Tensor scale, Tensor shift, int bits, int sign, Tensor(a!) out,"
    " int first) -> bool",
    reference=reference.grid_add_,
    native=native.grid_add_,
    meta=lambda x, y, scale, shift, bits, sign, out, first: True,
)


def _raise_out_of_range(out: Tensor, bits: int) -> None:
    worst = float(out.abs().max())  # NaN if there is one
    raise GridRangeError(
        f"value {worst:g} left the range of the grid, below {2 ** (23 - bits)} at {bits} bits; "
        "lower the learning rate, or use fewer grid bits"
    )


@torch.no_grad()
def grid_add(
    x: Tensor | None,
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    bits: int = 14,
    sign: int = 1,
    out: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Return ``x + sign * round(y * scale + shift)``, rounded half to even to 2**-bits.

    Args:
        x: on the grid, shape of ``out``; None means 0.
        y: [M, C, ...].
        scale, shift: [C], the batch norm that y goes through (:func:`norm_affine`).
        bits: the grid, 0 to 22.
        sign: +1, or -1 to undo.
        out: where to write, contiguous; may be x. It may have more channels than y, which are then
            left alone.
        first: the channel of ``out`` that belongs to the first of y.

    Raises:
        GridRangeError: a value left the range, or is NaN. ``out`` is then overwritten all the same.
    """
    if out is None:
        out = torch.empty_like(y, memory_format=torch.contiguous_format)
    if not _grid_add(x, y, scale, shift, bits, 1 if sign > 0 else -1, out, first):
        _raise_out_of_range(out, bits)
    return out


@torch.no_grad()
def grid_round(x: Tensor, bits: int = 14) -> Tensor:
    """Return ``x`` [...] rounded half to even to multiples of 2**-bits; checks as grid_add."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    none = x.new_empty(0)
    if not _grid_add(None, x, none, none, bits, 1, out, 0):
        _raise_out_of_range(out, bits)
    return out
