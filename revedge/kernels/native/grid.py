"""Calls of the C library: additions on the grid."""

from collections.abc import Sequence

from torch import Tensor

from revedge.kernels._shapes import check_shape, check_slab
from revedge.kernels.native._call import call, planes


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
    """See reference.grid_add_."""
    check_shape("x", x, out.shape)
    sizes: Sequence[int] = (1, 1, y.numel(), 1, 0)
    if not scale.numel():
        check_shape("out", out, y.shape)
    else:
        channels = check_slab("out", out, y, 1, first)
        sizes = (*planes(y, 1), channels, first)
        for name, tensor in (("scale", scale), ("shift", shift)):
            check_shape(name, tensor, y.shape[1:2])
    p = [float(2**bits), float(2.0**-bits), float(sign), float(2 ** (23 - bits))]
    return call("grid_add", [x, y, scale, shift, out], sizes, p) == 0
