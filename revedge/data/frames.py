"""Counts of events as the cache stores them."""

from typing import Any

import numpy as np
import numpy.typing as npt


def to_uint8(counts: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return event counts as uint8; more than 255 events in one pixel and bin count as 255."""
    frames: npt.NDArray[np.uint8] = np.clip(counts, 0, 255).astype(np.uint8)
    return frames
