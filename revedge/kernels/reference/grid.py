"""Sums on the grid of multiples of 2**-bits, where float32 addition is exact."""

import torch
from torch import Tensor


def grid_add_(
    x: Tensor | None,
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    bits: int,
    sign: int,
    out: Tensor,
    first: int = 0,
) -> bool:
    """Write ``x + sign * round(y * scale + shift)`` to ``out``; return whether all is in range.

    ``y`` is [M, C, ...], the channels from ``first`` on of ``x`` and ``out``; ``scale`` and ``shift``
    are [C], or empty for 1 and 0. Rounding is half to even, to multiples of 2**-bits.
    No -0.0 is ever written: 0.0 + r - r must give 0.0's bits.
    """
    if scale.numel():
        shape = [1, -1] + [1] * (y.dim() - 2)
        y = y * scale.reshape(shape) + shift.reshape(shape)
    r = torch.round(y * float(2**bits)) * float(2.0**-bits)
    if scale.numel():
        x = None if x is None else x.narrow(1, first, y.shape[1])
        out = out.narrow(1, first, y.shape[1])
    base = torch.zeros_like(r) if x is None else x
    torch.add(base, r, alpha=1 if sign > 0 else -1, out=out)
    return bool((out.abs() < float(2 ** (23 - bits))).all())
