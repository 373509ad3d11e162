"""Weights as 8-bit integers times a power of two: four times smaller, and the same numbers to the last bit.

A runtime that multiplies them out again (DequantizeLinear) has the float32 weights of the network, so no spike changes.
That is possible only for weights that lie on such a grid already; nothing is rounded here.
"""

import numpy as np
import numpy.typing as npt

from revedge.errors import ExportError

_LARGEST = 127
_FINEST = -126  # exponent of the smallest normal float32


def as_int8(
    weight: npt.NDArray[np.float32], name: str
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return int8 levels and the scale, so that ``levels * scale`` is ``weight`` bit for bit.

    Args:
        weight: output channel first.
        name: for errors.

    Returns:
        levels in -127 .. 127; scale is a float32 scalar, or ``[channels]`` where channels differ.

    Raises:
        ExportError: a channel is not a multiple of a power of two, or spans more than 127 of them.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    # The coarsest power of two that keeps the largest weight of the channel within 127 steps is also the finest useful.
    exponent = np.ceil(np.log2(np.maximum(largest, 2.0**_FINEST) / _LARGEST)).astype(np.int64)
    exponent = np.maximum(exponent, _FINEST)
    if np.any(rows / 2.0 ** exponent[:, None] % 1.0):
        raise ExportError(
            f"{name} does not lie on a grid of 8-bit integers times a power of two, so --weights int8 would change it; "
            "use --numerics exact, or --weights float32"
        )
    used = exponent[largest > 0]
    if len(used) and np.all(rows / 2.0 ** used.max() % 1.0 == 0):
        exponent = np.asarray(used.max())
    scale = np.asarray(2.0**exponent, np.float32)
    levels = rows / (scale[:, None] if scale.ndim else scale)
    return levels.astype(np.int8).reshape(weight.shape), scale
