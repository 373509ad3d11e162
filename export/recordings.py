"""Recordings made to fit a file: as many samples as its batch, as many frames as its steps. numpy only."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def repeat_frames(frames: Array, steps: int, static: bool) -> Array:
    """``[T, B, ...]`` (or an image ``[B, ...]``) as ``[steps, B, ...]``: the recording again from its beginning."""
    sequence = frames[None] if static else frames
    return sequence[np.arange(steps) % len(sequence)]


def fill_batch(x: Array, batch: int | None) -> Array:
    """``[..., B, C, H, W]`` as ``[..., batch, C, H, W]``: the last sample again; None, or enough already: as it is.

    The answers to what was added are behind those to ``x``, in every file: no sample sees another.
    """
    count = x.shape[-4]
    if batch is None or batch <= count:
        return x
    filled: Array = np.take(x, np.minimum(np.arange(batch), count - 1), axis=x.ndim - 4)
    return filled
