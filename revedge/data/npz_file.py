"""Reads .npz files of the user's own frames: checked before anything is used, never unpickled.

Arrays: ``train_x, train_y, test_x, test_y``, or ``x, y`` (then 20 % of every class, always the
same, are the test part).
x is uint8: static images [N, H, W] or [N, C, H, W], or counts of events [N, T, C, H, W].
y is [N], whole numbers from 0.

The frames are streamed out of the archive one by one: a file larger than memory is no problem.
"""

import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt

from revedge.data.split import stratified_split
from revedge.errors import DataError, UsageError

_CLASSES_LIMIT = 65_536
Int64 = npt.NDArray[np.int64]
Result = TypeVar("Result")


@dataclass(frozen=True)
class NpzPart:
    """Which samples of the array ``member`` form the training or test part, and their labels."""

    member: str
    indices: Int64
    labels: Int64


@dataclass(frozen=True)
class NpzFile:
    """A checked .npz file; ``sample_shape`` is [H, W], [C, H, W] or [T, C, H, W]."""

    path: Path
    sample_shape: tuple[int, ...]
    num_classes: int
    train: NpzPart
    test: NpzPart

    @property
    def timesteps(self) -> int | None:
        """T of event frames, None for static images."""
        return self.sample_shape[0] if len(self.sample_shape) == 4 else None

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(C, H, W); [H, W] images have one channel."""
        c, h, w = (1, *self.sample_shape)[-3:]
        return c, h, w

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the training samples and then the test samples; memory: one sample."""
        shape = self.in_shape if self.timesteps is None else self.sample_shape
        for part in (self.train, self.test):
            wanted = np.zeros(int(part.indices[-1]) + 1, dtype=bool)
            wanted[part.indices] = True
            for index, sample in enumerate(_stream(self.path, part.member, self.sample_shape)):
                if wanted[index]:
                    yield sample.reshape(shape)
                if index + 1 == len(wanted):
                    break


def find_npz(data_dir: Path) -> NpzFile:
    """Find and check the .npz file: ``data_dir`` itself, or the only one in that folder.

    Raises:
        UsageError: there is none, or more than one.
        DataError: it is damaged, or its arrays are not as described above.
    """
    files = [data_dir] if data_dir.is_file() else sorted(data_dir.glob("*.npz"))
    if len(files) != 1:
        found = "no .npz file" if not files else f"{len(files)} .npz files"
        raise UsageError(f"{data_dir} holds {found}; pass the one file with --data-dir FILE.npz")
    path = files[0]
    return _guarded(path, lambda: _check(path))


def _check(path: Path) -> NpzFile:
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy") for name in archive.namelist()}
    if {"train_x", "train_y", "test_x", "test_y"} <= members:
        sample_shape, count = _frames_shape(path, "train_x")
        other_shape, test_count = _frames_shape(path, "test_x")
        if other_shape != sample_shape:
            shapes = f"{list(sample_shape)} and {list(other_shape)}"
            raise DataError(f"{path}: samples of train_x and test_x differ in shape: {shapes}")
        train = NpzPart("train_x", np.arange(count), _labels(path, "train_y", count))
        test = NpzPart("test_x", np.arange(test_count), _labels(path, "test_y", test_count))
    elif {"x", "y"} <= members:
        sample_shape, count = _frames_shape(path, "x")
        labels = _labels(path, "y", count)
        train_at, test_at = stratified_split(labels)
        if not len(test_at):
            raise DataError(f"{path}: too few samples to keep 20 % of every class for the test")
        train = NpzPart("x", train_at, labels[train_at])
        test = NpzPart("x", test_at, labels[test_at])
    else:
        held = ", ".join(sorted(members)) or "nothing"
        raise DataError(f"{path} holds {held}; wanted train_x, train_y, test_x, test_y, or x, y")
    num_classes = int(train.labels.max()) + 1
    if int(test.labels.max()) >= num_classes:
        unknown = int(test.labels.max())
        raise DataError(f"{path}: test label {unknown} is above every training label")
    return NpzFile(path, sample_shape, num_classes, train, test)


def _frames_shape(path: Path, name: str) -> tuple[tuple[int, ...], int]:
    """Shape of one sample, and their number; checks type, order and length of the array."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape, dtype, fortran = _header(file, f"{path}: {name}")
        held_bytes = archive.getinfo(f"{name}.npy").file_size - file.tell()
    if dtype != np.uint8:
        raise DataError(f"{path}: {name} is {dtype}, not uint8; convert it, 0 to 255")
    if len(shape) not in (3, 4, 5) or not all(size > 0 for size in shape):
        forms = "[N, H, W], [N, C, H, W] or [N, T, C, H, W]"
        raise DataError(f"{path}: {name} has shape {list(shape)}; wanted {forms}, none empty")
    if fortran:
        raise DataError(f"{path}: {name} is in Fortran order; save numpy.ascontiguousarray of it")
    if held_bytes != math.prod(shape):
        wanted = f"{math.prod(shape)} bytes for shape {list(shape)}"
        raise DataError(f"{path}: {name} has {held_bytes} bytes of data, not {wanted}")
    return shape[1:], shape[0]


def _labels(path: Path, name: str, count: int) -> Int64:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape, dtype, _ = _header(file, f"{path}: {name}")
        if dtype.kind not in "iu" or shape != (count,):
            found = f"{dtype} {list(shape)}"
            raise DataError(f"{path}: {name} is {found}; wanted whole numbers, [{count}]")
        data = file.read(count * dtype.itemsize + 1)
    if len(data) != count * dtype.itemsize:
        raise DataError(f"{path}: {name} has {len(data)} bytes, not {count * dtype.itemsize}")
    labels = np.frombuffer(data, dtype=dtype)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= _CLASSES_LIMIT:
        limit = f"0 to {_CLASSES_LIMIT - 1}"
        raise DataError(f"{path}: {name} holds labels {low} to {high}; they must be {limit}")
    return labels.astype(np.int64)


def _header(file: IO[bytes], what: str) -> tuple[tuple[int, ...], np.dtype[np.generic], bool]:
    """Read the .npy header; refuses arrays of Python objects, which only a pickle can hold."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise DataError(f"{what} is of .npy version {version[0]}.{version[1]}; save it again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's remark on headers that Python 2 wrote
        shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise DataError(f"{what} holds pickled Python objects; refused, save plain numbers")
    return shape, dtype, fortran


def _stream(
    path: Path, name: str, sample_shape: tuple[int, ...]
) -> Iterator[npt.NDArray[np.uint8]]:
    sample_bytes = math.prod(sample_shape)
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        _header(file, f"{path}: {name}")
        while data := _guarded(path, lambda: file.read(sample_bytes)):
            if len(data) != sample_bytes:
                raise DataError(f"{path}: {name} ends in the middle of a sample; copy it again")
            yield np.frombuffer(data, dtype=np.uint8)


def _guarded(path: Path, read: Callable[[], Result]) -> Result:
    """Return ``read()``; what a damaged archive raises becomes a DataError."""
    try:
        return read()
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} is not a usable .npz file: {text}; save or copy it again"
        ) from None
    except (KeyError, RuntimeError, SyntaxError, TokenError) as error:  # encrypted; a bad header
        raise DataError(f"{path} is not a usable .npz file: {error}; save it again") from None
