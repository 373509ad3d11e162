"""Reads single event recordings with numpy alone: .npz, .bin (N-MNIST) and, with the package aedat, .aedat4.

.npz      arrays t [us], x, y, p of one length, or one structured array `events` with these fields
.bin      N-MNIST: 40 bits an event (x, y, polarity and 23 bits of time); y = 240 marks 2^13 us more
.aedat4   the first stream of events
"""

import io
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from revedge import child
from revedge.errors import DataError, UsageError

Events = npt.NDArray[np.void]
EVENT_DTYPE = np.dtype([("t", "<i8"), ("x", "<i4"), ("y", "<i4"), ("p", "i1")])
FORMATS = (".npz", ".bin", ".aedat4")
NO_PACKAGE = 3  # exit code of the child that reads .aedat4
LATEST_US = 1 << 62  # times lie this far from 0 at most, so that their differences are int64 too
_FIELDS = ("t", "x", "y", "p")
_LARGEST_BYTES = 1 << 31
_NMNIST_BYTES, _NMNIST_OVERFLOW_Y, _NMNIST_OVERFLOW_US = 5, 240, 1 << 13


def read_events(path: Path) -> Events:
    """Return the events of a recording in order of time, `EVENT_DTYPE`: t in us, x and y in pixels, p 0 or 1.

    Raises:
        UsageError: no such file, a name that ends in something else than `FORMATS`, or aedat is not installed.
        DataError: damaged, empty, or larger than 2 GiB.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; name a recording ({', '.join(FORMATS)})")
    readers = {".npz": _read_npz, ".bin": _read_nmnist, ".aedat4": _read_aedat4}
    if path.suffix not in readers:
        raise UsageError(f"{path} is none of {', '.join(FORMATS)}; convert it first")
    if path.stat().st_size > _LARGEST_BYTES:
        raise DataError(f"{path} is larger than 2 GiB; cut it, or send its events to --stream")
    try:
        events = readers[path.suffix](path)
    except UsageError:
        raise
    except Exception as error:  # zipfile, zlib, numpy: many ways to say that bytes make no sense
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is damaged, or not a recording of events ({reason})") from None
    if not len(events):
        raise DataError(f"{path} holds no events")
    t = events["t"]
    return events[np.argsort(t, kind="stable")] if np.any(np.diff(t) < 0) else events


def events_of(t: Any, x: Any, y: Any, p: Any) -> Events:
    """Return columns as `EVENT_DTYPE`.

    Raises:
        ValueError: they are not whole numbers of one length, or a polarity is neither 0 nor 1.
    """
    columns = [np.asarray(column) for column in (t, x, y, p)]
    if any(one.ndim != 1 or len(one) != len(columns[0]) for one in columns):
        raise ValueError("t, x, y and p are not columns of one length")
    if any(one.dtype.kind not in "iub" for one in columns):
        raise ValueError("t, x, y and p are not whole numbers")
    events = np.empty(len(columns[0]), EVENT_DTYPE)
    for name, column in zip(_FIELDS, columns, strict=True):
        limits = np.iinfo(EVENT_DTYPE[name])
        if len(column) and not limits.min <= int(column.min()) <= int(column.max()) <= limits.max:
            raise ValueError(f"{name} is out of range")
        events[name] = column
    if len(events) and max(-int(events["t"].min()), int(events["t"].max())) >= LATEST_US:
        raise ValueError("t is out of range")
    if len(events) and not (events["p"].min() >= 0 and events["p"].max() <= 1):
        raise ValueError("p is neither 0 nor 1")
    return events


def _read_npz(path: Path) -> Events:
    with zipfile.ZipFile(path) as archive:
        claimed_bytes = sum(member.file_size for member in archive.infolist())
    if claimed_bytes > _LARGEST_BYTES:
        raise ValueError(f"its arrays are {claimed_bytes} bytes, at most {_LARGEST_BYTES} are read")
    with np.load(path, allow_pickle=False) as archive:
        if "events" in archive:
            table = archive["events"]
            return events_of(*(table[name] for name in _FIELDS))
        missing = [name for name in _FIELDS if name not in archive]
        if missing:
            raise ValueError(f"no array {missing[0]}; t, x, y, p or events are needed")
        return events_of(*(archive[name] for name in _FIELDS))


def _read_nmnist(path: Path) -> Events:
    content = np.fromfile(path, np.uint8)
    if len(content) == 0 or len(content) % _NMNIST_BYTES:
        raise ValueError(f"{len(content)} bytes are not a whole number of 5-byte events, or none")
    x, y, high, middle, low = content.reshape(-1, _NMNIST_BYTES).T.astype(np.int64)
    overflow = y == _NMNIST_OVERFLOW_Y
    t = ((high & 127) << 16 | middle << 8 | low) + np.cumsum(overflow) * _NMNIST_OVERFLOW_US
    kept = ~overflow
    return events_of(t[kept], x[kept], y[kept], (high >> 7)[kept])


def _read_aedat4(path: Path) -> Events:
    """In a child process: on a damaged file the package may end the process that called it."""
    done = subprocess.run(
        child.command("revedge.data._read_aedat4", str(path.resolve())),
        env=child.environment(),
        capture_output=True,
        check=False,
    )
    if done.returncode == NO_PACKAGE:
        raise UsageError(
            f"{path} needs the package aedat; install it with: pip install 'revedge[aedat4]'"
        )
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(told[-1] if told and done.returncode == 1 else "it cannot be decoded")
    table = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    return events_of(*(table[name] for name in _FIELDS))
