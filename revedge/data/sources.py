"""What each data set name stands for on this disk, found without the packages that read it.

Used by the training process to describe a data set and to name its cache, and by the child
process that writes the cache to find the same files again.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from revedge.data.child import run_child
from revedge.data.event_camera import EventCamera
from revedge.data.image_files import find_images
from revedge.data.npz_file import find_npz
from revedge.data.recording_files import Recordings, find_dvsgesture, find_nmnist
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
    """A data set that was found: everything that shapes its frames, and its description.

    Attributes:
        name: one of ``NAMES``.
        static: True for images without a time axis.
        key: everything that shapes the frames, apart from timesteps and downsample.
        describe: returns the description; for folders of images it starts a child process.
        timesteps: the only T that the file offers, or None where T is free.
    """

    name: str
    static: bool
    key: dict[str, Any]
    describe: Callable[[], DatasetInfo]
    timesteps: int | None = None


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


def _digits() -> Source:
    camera = EventCamera()
    size = camera.sensor_pixels
    split = {"test_percent": TEST_PERCENT, "seed": SPLIT_SEED}
    info = DatasetInfo("digits", (2, size, size), 10, static=False)
    key = {"camera": camera.describe(), "split": split}
    return Source("digits", False, key, lambda: info)


def _nmnist(data_dir: Path, downsample: int) -> Source:
    found = find_nmnist(data_dir)
    return _recordings("nmnist", found, 34, 10, downsample)


def _dvsgesture(data_dir: Path, downsample: int) -> Source:
    found = find_dvsgesture(data_dir)
    return _recordings("dvsgesture", found, 128, 11, downsample)


def _recordings(
    name: str, found: Recordings, pixels: int, num_classes: int, downsample: int
) -> Source:
    if pixels % downsample:
        text = (
            f"{name} has {pixels} x {pixels} pixels, which downsample {downsample} does not divide"
        )
        raise UsageError(
            f"{text}; use a power of two" if pixels == 128 else f"{text}; use 1, 2 or 17"
        )
    size = pixels // downsample
    info = DatasetInfo(name, (2, size, size), num_classes, static=False)
    key = {"files_sha256": files_digest(found.root, found.files())}
    return Source(name, False, key, lambda: info)


def _npz(data_dir: Path, _: int) -> Source:
    found = find_npz(data_dir)
    static = found.timesteps is None
    info = DatasetInfo("npz", found.in_shape, found.num_classes, static, found.timesteps)
    split = {"test_percent": TEST_PERCENT, "seed": SPLIT_SEED}
    digest = files_digest(found.path.parent, [found.path])
    key = {"files_sha256": digest, "split": split}
    return Source("npz", static, key, lambda: info, found.timesteps)


def _folder(data_dir: Path, _: int) -> Source:
    found = find_images(data_dir)

    def describe() -> DatasetInfo:
        task = {"action": "describe", "name": "folder", "data_dir": str(data_dir)}
        answer = run_child(task)
        return DatasetInfo("folder", tuple(answer["in_shape"]), answer["num_classes"], static=True)

    key = {"files_sha256": files_digest(found.root, found.files())}
    return Source("folder", True, key, describe)


_FINDERS: dict[str, Callable[[Path, int], Source]] = {
    "nmnist": _nmnist,
    "dvsgesture": _dvsgesture,
    "npz": _npz,
    "folder": _folder,
}


def files_digest(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 over names, sizes and times of change: changes when a file does, reads none."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        line = f"{file.relative_to(root)}\t{status.st_size}\t{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
