"""Writes a frame cache: into a folder of its own first, so that a cache is whole or not there."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from revedge.data.cache import FORMAT_VERSION, FRAMES_FILE, LABELS_FILE, META_FILE
from revedge.errors import DataError
from revedge.units import format_bytes


@dataclass(frozen=True)
class Samples:
    """A data set on its way into a cache: everything but the frames is known beforehand.

    Attributes:
        in_shape: (C, H, W).
        timesteps: T for events, None for static images.
        class_names: K names.
        labels: int64 [N], the training samples first.
        num_train: how many of them are training samples.
        scale: what the network multiplies the uint8 values by.
        frames: N arrays uint8 [T, C, H, W] or [C, H, W], in the order of ``labels``.
    """

    in_shape: tuple[int, int, int]
    timesteps: int | None
    class_names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    num_train: int
    scale: float
    frames: Iterator[npt.NDArray[np.uint8]]


def write_cache(
    samples: Samples,
    folder: Path,
    dataset: str,
    key: dict[str, Any],
    made_with: dict[str, str],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``samples`` into the new folder ``folder``; memory: one sample at a time.

    Raises:
        DataError: the frames are not of the announced number or shape, or the disk is full.
    """
    shape = (
        samples.in_shape if samples.timesteps is None else (samples.timesteps, *samples.in_shape)
    )
    total_bytes = len(samples.labels) * int(np.prod(shape))
    digest, done = hashlib.sha256(), 0
    try:
        folder.mkdir(parents=True)
        with (folder / FRAMES_FILE).open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, total_bytes)  # a full disk is found at once
            for frame in samples.frames:
                if frame.shape != shape or frame.dtype != np.uint8:
                    found = f"{frame.dtype} {list(frame.shape)}"
                    raise DataError(f"{dataset}: sample {done} is {found}, not uint8 {list(shape)}")
                piece = frame.tobytes()
                digest.update(piece)
                file.write(piece)
                done += 1
                if progress is not None:
                    progress(done)
            _flush(file.fileno(), file.flush)
        labels = samples.labels.astype("<i8").tobytes()
        (folder / LABELS_FILE).write_bytes(labels)
        meta = {
            "format_version": FORMAT_VERSION,
            "dataset": dataset,
            "in_shape": list(samples.in_shape),
            "timesteps": samples.timesteps,
            "num_classes": len(samples.class_names),
            "class_names": list(samples.class_names),
            "num_train": samples.num_train,
            "num_test": len(samples.labels) - samples.num_train,
            "scale": samples.scale,
            "frames_sha256": digest.hexdigest(),
            "labels_sha256": hashlib.sha256(labels).hexdigest(),
            "key": key,
            "made_with": made_with,
        }
        (folder / META_FILE).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        room = f"{format_bytes(total_bytes)} of frames in {folder.parent}"
        fix = "free some space, or set REVEDGE_CACHE to a folder on another disk"
        raise DataError(f"cannot write {room}: {error.strerror or error}; {fix}") from None
    if done != len(samples.labels):
        raise DataError(f"{dataset}: {done} samples were read, {len(samples.labels)} are labeled")


def _flush(file: int, flush: Callable[[], None]) -> None:
    """Have the frames on disk before the folder gets its final name (power loss on a board)."""
    flush()
    os.fsync(file)
