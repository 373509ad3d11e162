"""What each data set name stands for on this disk, found without the packages that read it.

Used by the training process to describe a data set and to name its cache, and by the child
process that writes the cache to find the same files again.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from revedge.data.event_camera import EventCamera
from revedge.data.split import SPLIT_SEED, TEST_PERCENT
from revedge.errors import UsageError

NAMES = ("digits", "nmnist", "dvsgesture", "npz", "folder")


@dataclass(frozen=True)
class DatasetInfo:
    """What a network must fit to.

    Attributes:
        name: one of ``NAMES``.
        in_shape: (C, H, W).
        num_classes: K.
        static: True for images without a time axis.
        timesteps: the only T that the file offers, or None where T is free.
    """

    name: str
    in_shape: tuple[int, int, int]
    num_classes: int
    static: bool
    timesteps: int | None = None


@dataclass(frozen=True)
class Source:
    """A data set that was found: its description and everything that shapes its frames."""

    info: DatasetInfo
    key: dict[str, Any] = field(default_factory=dict)


def find_source(name: str, data_dir: Path | None, downsample: int = 1) -> Source:
    """Find the data set ``name``.

    Raises:
        UsageError: no such name, no such folder, or the folder does not hold that data set.
        DataError: its files are damaged.
    """
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(NAMES)}"
        raise UsageError(f"no data set is called {name!r}; {hint}")
    if downsample < 1:
        raise UsageError(f"downsample {downsample} is not a positive whole number; use 1 for none")
    if downsample > 1 and name not in ("nmnist", "dvsgesture"):
        raise UsageError(f"{name} cannot be downsampled; leave downsample at 1")
    if name == "digits":
        return _digits()
    if data_dir is None:
        raise UsageError(f"{name} is read from disk; pass its folder with --data-dir DIR")
    if not data_dir.exists():
        raise UsageError(
            f"no such file or folder: {data_dir}; pass --data-dir DIR that holds {name}"
        )
    return _FINDERS[name](data_dir, downsample)


def files_digest(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 over names, sizes and times of change: changes when a file does, reads none."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        line = f"{file.relative_to(root)}\t{status.st_size}\t{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _digits() -> Source:
    camera = EventCamera()
    size = camera.sensor_pixels
    split = {"test_percent": TEST_PERCENT, "seed": SPLIT_SEED}
    key = {"camera": camera.describe(), "split": split}
    return Source(DatasetInfo("digits", (2, size, size), 10, static=False), key)


_FINDERS: dict[str, Callable[[Path, int], Source]] = {}
