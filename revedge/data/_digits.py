"""Child process only: scikit-learn's handwritten digits as an event camera sees them.

1,797 real scans of 8 x 8 pixels with 17 gray levels (E. Alpaydin, C. Kaynak, UCI "Optical
Recognition of Handwritten Digits"), which scikit-learn carries inside its package.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from tonic.transforms import ToFrame

from revedge.data.event_camera import EventCamera
from revedge.data.frames import to_uint8
from revedge.data.split import stratified_split
from revedge.data.writer import Samples

_WHITE = 16


def open_digits(timesteps: int) -> Samples:
    """Return the digits' frames [T, 2, H, W], training part first."""
    scans: Any = load_digits()  # a Bunch, which ships no types
    labels = np.asarray(scans.target, dtype=np.int64)
    train, test = stratified_split(labels)
    order = np.concatenate([train, test])
    camera = EventCamera()
    return Samples(
        in_shape=(2, camera.sensor_pixels, camera.sensor_pixels),
        timesteps=timesteps,
        class_names=tuple(str(digit) for digit in range(10)),
        labels=labels[order],
        num_train=len(train),
        scale=1.0,
        frames=_frames(np.asarray(scans.images), order, camera, timesteps),
    )


def _frames(
    images: npt.NDArray[Any], order: npt.NDArray[np.int64], camera: EventCamera, timesteps: int
) -> Iterator[npt.NDArray[np.uint8]]:
    size = camera.sensor_pixels
    to_frame = ToFrame(sensor_size=(size, size, 2), n_time_bins=timesteps)
    for index in order:
        events = camera.record(images[index].astype(np.int64), _WHITE, int(index))
        yield to_uint8(to_frame(events))
