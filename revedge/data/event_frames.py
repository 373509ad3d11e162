"""Counts events into frames exactly as the training data were counted, without tonic."""

import numpy as np
import numpy.typing as npt

from revedge.data.event_files import Events
from revedge.data.frames import to_uint8
from revedge.errors import DataError


def frames_of(
    events: Events,
    in_shape: tuple[int, int, int],
    timesteps: int,
    span_us: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Return event counts ``[T, C, H, W]``.

    Args:
        events: in order of time, see `revedge.data.event_files.EVENT_DTYPE`.
        in_shape: (C, H, W); C is 2 (polarity apart) or 1 (together).
        timesteps: T bins of equal length.
        span_us: from (included) and to (not included) what time; None takes the recording from its first event to its
            last as tonic's ``ToFrame(n_time_bins=T)`` does: the length of a bin is rounded down to whole us, and what
            is left over at the end falls away.

    Raises:
        DataError: an event outside of H x W.
    """
    channels, height, width = in_shape
    x, y = events["x"], events["y"]
    if len(events) and (min(x.min(), y.min()) < 0 or x.max() >= width or y.max() >= height):
        raise DataError(
            f"the recording has events outside of {width} x {height} pixels (x {x.min()} to {x.max()}, y {y.min()} "
            f"to {y.max()}); the model was trained for that size"
        )
    frames = np.zeros((timesteps, channels, height, width), np.int64)
    if not len(events):
        return to_uint8(frames)
    t = events["t"]
    if span_us is None:
        begin, step = int(t[0]), (int(t[-1]) - int(t[0])) // timesteps
        index = (t - begin) // step if step else np.full(len(t), timesteps)
    else:
        begin, end = span_us
        index = np.where(
            (t >= begin) & (t < end), (t - begin) * timesteps // (end - begin), timesteps
        )
    kept = index < timesteps
    channel = events["p"][kept].astype(np.int64) if channels == 2 else np.zeros_like(index[kept])
    places = np.ravel_multi_index((index[kept], channel, y[kept], x[kept]), frames.shape)
    counts = np.bincount(places, minlength=frames.size).reshape(frames.shape)
    return to_uint8(counts)
