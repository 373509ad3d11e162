"""The frame cache: frames of a data set as one flat uint8 file that training reads sample by sample.

A cache is a folder:

    frames.u8     uint8, C order, all training samples and then all test samples
    labels.i64    little-endian int64, one per sample, in the same order
    meta.json     shapes, names, the key of everything that shaped the frames, SHA-256 of both files

It is written once by a child process (``prepare``) and only read here.
Reading needs numpy alone, and nothing in it is ever unpickled.

Shapes: T time bins, B samples of a batch, C channels (events: OFF, ON), H height, W width.
"""

import hashlib
import json
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from revedge.errors import DataError

FORMAT_VERSION = 1
FRAMES_FILE, LABELS_FILE, META_FILE = "frames.u8", "labels.i64", "meta.json"
_META_LIMIT_BYTES = 16 * 2**20
_DIGEST_CHUNK_BYTES = 2**20

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


class FrameCache:
    """Frames and labels of one data set at one number of timesteps.

    Attributes:
        path: the folder.
        dataset: name of the data set, for example "digits".
        in_shape: (C, H, W).
        timesteps: T for events, None for static images.
        num_classes: K; labels are 0 to K - 1.
        class_names: K names.
        labels: int64 [N]; made when asked for.
        train_indices, test_indices: int64; positions in ``frames`` and ``labels``; made when asked for.
        scale: multiply the uint8 values by this to get the network's input.
        sample_bytes: bytes of one sample.
        frames: read-only uint8 [N, T, C, H, W] (events) or [N, C, H, W] (static), memory-mapped.

    Memory: ``batch`` copies with pread, so it adds ``resident_bound_bytes`` to the process and
    nothing that stays. Touching ``frames`` does grow the resident set, by whole 4 KiB pages and,
    as Linux maps the neighbors of a page that faults, by up to 64 KiB on each side of what was
    read; ``drop_pages`` gives all of it back.
    """

    def __init__(self, path: Path, meta: dict[str, Any], labels: Int64) -> None:
        """Use ``FrameCache.open``."""
        self.path = path
        self.meta = meta
        self.dataset: str = meta["dataset"]
        c, h, w = meta["in_shape"]
        self.in_shape: tuple[int, int, int] = (c, h, w)
        self.timesteps: int | None = meta["timesteps"]
        self.num_classes: int = meta["num_classes"]
        self.class_names: tuple[str, ...] = tuple(meta["class_names"])
        self.scale: float = meta["scale"]
        # Of 70,000 samples labels and both indices as int64 would be 1.1 MiB of every training.
        self._labels = labels.astype(np.min_scalar_type(self.num_classes))
        self.sample_shape: tuple[int, ...] = (
            self.in_shape if self.timesteps is None else (self.timesteps, *self.in_shape)
        )
        self.sample_bytes = int(np.prod(self.sample_shape))
        self._file = os.open(path / FRAMES_FILE, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._map: mmap.mmap | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "FrameCache":
        """Open the cache folder ``path``.

        Sizes, shapes and the digest of the labels are checked; the frames themselves are not read
        (``check_frames`` does that).

        Raises:
            DataError: a file is missing, truncated, damaged or of another format version.
        """
        folder = Path(path)
        try:
            meta = _read_meta(folder / META_FILE)
            label_bytes = (folder / LABELS_FILE).read_bytes()
            found_bytes = (folder / FRAMES_FILE).stat().st_size
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(folder, _reason(error)) from None
        if meta["format_version"] != FORMAT_VERSION:
            version = meta["format_version"]
            raise _damaged(folder, f"is of format {version}, this revedge reads {FORMAT_VERSION}")
        problem = _inconsistency(meta, found_bytes, label_bytes)
        if problem:
            raise _damaged(folder, problem)
        labels = np.frombuffer(label_bytes, dtype="<i8").astype(np.int64)
        if labels.min() < 0 or labels.max() >= meta["num_classes"]:
            raise _damaged(folder, f"has labels outside 0 to {meta['num_classes'] - 1}")
        return cls(folder, meta, labels)

    def __len__(self) -> int:
        """Return the number of samples N."""
        return len(self._labels)

    @property
    def labels(self) -> Int64:
        """The class of every sample, int64 [N]."""
        return self._labels.astype(np.int64)

    @property
    def train_indices(self) -> Int64:
        """Positions of the training samples."""
        return np.arange(self.meta["num_train"], dtype=np.int64)

    @property
    def test_indices(self) -> Int64:
        """Positions of the test samples."""
        return np.arange(self.meta["num_train"], len(self), dtype=np.int64)

    @property
    def static(self) -> bool:
        """Whether the samples are images without a time axis."""
        return self.timesteps is None

    @property
    def frames(self) -> UInt8:
        """All frames, mapped read-only; see the class for what touching them costs."""
        if self._map is None:
            self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, dtype=np.uint8).reshape(len(self), *self.sample_shape)

    def batch(self, indices: npt.ArrayLike) -> tuple[UInt8, Int64]:
        """Return fresh contiguous arrays of the samples ``indices``, in the order asked for.

        Args:
            indices: [B] integers, 0 to N - 1.

        Returns:
            (uint8 [T, B, C, H, W] for events or [B, C, H, W] for static images, int64 [B])

        Raises:
            IndexError: an index outside the data set.
            DataError: the file was shortened since it was opened.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise IndexError(f"sample indices must be 0 to {len(self) - 1}, got {chosen.tolist()}")
        if self.timesteps is None:
            out = np.empty((len(chosen), *self.in_shape), dtype=np.uint8)
            for b, index in enumerate(chosen):
                self._read_into(out[b], int(index))
        else:
            out = np.empty((self.timesteps, len(chosen), *self.in_shape), dtype=np.uint8)
            sample = np.empty(self.sample_shape, dtype=np.uint8)
            for b, index in enumerate(chosen):
                self._read_into(sample, int(index))
                out[:, b] = sample
        return out, self._labels[chosen].astype(np.int64)

    def resident_bound_bytes(self, batch_size: int) -> int:
        """Most bytes that one call of ``batch`` adds to the resident set.

        The returned frames and labels, the copy of the indices, one sample between file and
        batch, and a page of rounding for each of these arrays.
        """
        arrays_bytes = (batch_size + 1) * self.sample_bytes + 2 * 8 * batch_size
        return arrays_bytes + 4 * mmap.PAGESIZE

    def drop_pages(self) -> None:
        """Give back the memory of every page of ``frames`` that was touched; data stay valid."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def check_frames(self) -> None:
        """Compare the SHA-256 of all frames with the one written; reads the whole file once.

        Raises:
            DataError: the frames are not those that were written.
        """
        if sha256_of_file(self.path / FRAMES_FILE) != self.meta["frames_sha256"]:
            raise _damaged(
                self.path, f"{FRAMES_FILE} does not have the SHA-256 it was written with"
            )

    def _read_into(self, sample: UInt8, index: int) -> None:
        view = sample.data.cast("B")
        done = 0
        while done < self.sample_bytes:
            offset = index * self.sample_bytes + done
            count = os.preadv(self._file, [view[done:]], offset)
            if count == 0:
                raise _damaged(self.path, f"{FRAMES_FILE} was shortened while it was in use")
            done += count


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file as hex, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_DIGEST_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _read_meta(path: Path) -> dict[str, Any]:
    """Read meta.json and check the type and range of every field that the reader relies on."""
    with path.open("rb") as file:
        text = file.read(_META_LIMIT_BYTES + 1)
    if len(text) > _META_LIMIT_BYTES:
        raise ValueError(f"{META_FILE} is larger than 16 MiB")
    meta = json.loads(text)
    if not isinstance(meta, dict) or not _is_count(meta["format_version"]):
        raise ValueError(f"{META_FILE} is not a description of frames")
    if meta["format_version"] != FORMAT_VERSION:
        return meta
    steps, names = meta["timesteps"], meta["class_names"]
    good = (
        len(meta["in_shape"]) == 3
        and all(_is_count(size) for size in meta["in_shape"])
        and (steps is None or _is_count(steps))
        and all(_is_count(meta[field]) for field in ("num_classes", "num_train", "num_test"))
        and isinstance(names, list)
        and len(names) == meta["num_classes"]
        and all(isinstance(name, str) for name in names)
        and all(isinstance(meta[f], str) for f in ("dataset", "frames_sha256", "labels_sha256"))
        and isinstance(meta["scale"], float)
        and 0 < meta["scale"] <= 1
    )
    if not good:
        raise ValueError(f"{META_FILE} has a field of the wrong type or range")
    return meta


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**48


def _inconsistency(meta: dict[str, Any], found_bytes: int, label_bytes: bytes) -> str | None:
    samples = meta["num_train"] + meta["num_test"]
    c, h, w = meta["in_shape"]
    wanted_bytes = samples * (meta["timesteps"] or 1) * c * h * w
    if found_bytes != wanted_bytes:
        return f"{FRAMES_FILE} has {found_bytes} bytes, should have {wanted_bytes}"
    if len(label_bytes) != 8 * samples:
        return f"{LABELS_FILE} has {len(label_bytes)} bytes, should have {8 * samples}"
    if hashlib.sha256(label_bytes).hexdigest() != meta["labels_sha256"]:
        return f"{LABELS_FILE} does not have the SHA-256 it was written with"
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename or '').name}: {error.strerror or error}".lower()
    if isinstance(error, KeyError):
        return f"{META_FILE} lacks the field {error.args[0]!r}"
    return str(error)


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(
        f"frame cache {folder}: {reason}; delete the folder, it is rebuilt when needed"
    )
