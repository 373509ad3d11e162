"""Child process only: event recordings -> tonic's readers and transforms -> frames."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tonic import datasets, io, transforms
from tonic.dataset import Dataset

from revedge.data.frames import to_uint8
from revedge.data.recording_files import Recording, Recordings, find_dvsgesture, find_nmnist
from revedge.data.writer import Samples
from revedge.errors import DataError

Events = npt.NDArray[np.void]
_EVENT_BYTES = 5  # one ATIS address-event: x, y, polarity and 23 bits of time


class _LocalNMNIST(datasets.NMNIST):  # type: ignore[misc]  # tonic ships no types
    """tonic's reader on files that were found here; it cannot download."""

    def __init__(self, transform: Callable[[Events], Any]) -> None:
        Dataset.__init__(self, "", transform=transform)
        self.first_saccade_only = self.stabilize = False


class _LocalDVSGesture(datasets.DVSGesture):  # type: ignore[misc]  # tonic ships no types
    """tonic's reader on files that were found here; it cannot download."""

    def __init__(self, transform: Callable[[Events], Any]) -> None:
        Dataset.__init__(self, "", transform=transform)


def open_nmnist(data_dir: Path, timesteps: int, downsample: int) -> Samples:
    """Return the frames [T, 2, 34, 34] of the N-MNIST recordings in ``data_dir``."""
    found = find_nmnist(data_dir)
    transform = _to_frames(datasets.NMNIST.sensor_size, timesteps, downsample)
    reader = _LocalNMNIST(transform)

    def read(recording: Recording) -> npt.NDArray[Any]:
        if not recording.member:
            _check_atis(recording.path.stat().st_size)
            return _read_with(reader, recording)
        content = archives(recording.path).read(recording.member)
        _check_atis(len(content))
        stream = BytesIO(content)
        events = io.read_mnist_file(stream, dtype=datasets.NMNIST.dtype, is_stream=True)
        frames: npt.NDArray[Any] = transform(events)
        return frames

    opened: dict[Path, zipfile.ZipFile] = {}

    def archives(path: Path) -> zipfile.ZipFile:
        if path not in opened:
            opened[path] = zipfile.ZipFile(path)
        return opened[path]

    names = tuple(str(digit) for digit in range(10))
    return _samples(found, datasets.NMNIST.sensor_size, names, timesteps, downsample, read)


def open_dvsgesture(data_dir: Path, timesteps: int, downsample: int) -> Samples:
    """Return the frames [T, 2, 128, 128] of the DVS128 Gesture recordings in ``data_dir``."""
    found = find_dvsgesture(data_dir)
    sensor = datasets.DVSGesture.sensor_size
    reader = _LocalDVSGesture(_to_frames(sensor, timesteps, downsample))

    def read(recording: Recording) -> npt.NDArray[Any]:
        table = np.load(recording.path, mmap_mode="r", allow_pickle=False)
        if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iuf":
            found_text = f"{table.dtype} {list(table.shape)}"
            raise ValueError(f"holds {found_text}, not the four columns x, y, p, t [ms]")
        return _read_with(reader, recording)

    names = tuple(datasets.DVSGesture.classes)
    return _samples(found, sensor, names, timesteps, downsample, read)


def _read_with(reader: Any, recording: Recording) -> npt.NDArray[Any]:
    reader.data, reader.targets = [str(recording.path)], [recording.label]
    frames: npt.NDArray[Any]
    frames, _ = reader[0]
    return frames


def _check_atis(size_bytes: int) -> None:
    if size_bytes == 0 or size_bytes % _EVENT_BYTES:
        raise ValueError(f"{size_bytes} bytes are not a whole number of 5-byte events, or none")


def _to_frames(
    sensor: tuple[int, int, int], timesteps: int, downsample: int
) -> Callable[[Events], npt.NDArray[Any]]:
    width, height, polarities = sensor
    smaller = (width // downsample, height // downsample, polarities)

    def in_order(events: Events) -> Events:
        """Events of this sensor, sorted by time, which ToFrame relies on but does not check."""
        x, y, t = events["x"], events["y"], events["t"]
        inside = min(x.min(), y.min()) >= 0 and x.max() < width and y.max() < height
        if not inside:
            span = f"x {x.min()} to {x.max()}, y {y.min()} to {y.max()}"
            raise ValueError(f"has events outside the {width} x {height} sensor ({span})")
        return events[np.argsort(t, kind="stable")] if np.any(np.diff(t) < 0) else events

    steps: list[Callable[[Any], Any]] = [in_order]
    if downsample > 1:
        steps.append(transforms.Downsample(spatial_factor=1 / downsample))
    steps.append(transforms.ToFrame(sensor_size=smaller, n_time_bins=timesteps))
    composed: Callable[[Events], npt.NDArray[Any]] = transforms.Compose(steps)
    return composed


def _samples(
    found: Recordings,
    sensor: tuple[int, int, int],
    class_names: tuple[str, ...],
    timesteps: int,
    downsample: int,
    read: Callable[[Recording], npt.NDArray[Any]],
) -> Samples:
    recordings = found.train + found.test
    return Samples(
        in_shape=(sensor[2], sensor[1] // downsample, sensor[0] // downsample),
        timesteps=timesteps,
        class_names=class_names,
        labels=np.array([recording.label for recording in recordings], dtype=np.int64),
        num_train=len(found.train),
        scale=1.0,
        frames=_frames(recordings, read),
    )


def _frames(
    recordings: tuple[Recording, ...], read: Callable[[Recording], npt.NDArray[Any]]
) -> Iterator[npt.NDArray[np.uint8]]:
    for recording in recordings:
        try:
            counts = read(recording)
            if counts.ndim != 4:  # tonic hands empty recordings on as they are, untransformed
                raise ValueError("holds no events")
        except (ValueError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{recording}: {text}; copy it again or remove it") from None
        yield to_uint8(counts)
