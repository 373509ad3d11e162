"""Finds the frame cache of a data set, and has a child process write it when it is missing.

The packages that read recordings (tonic, scikit-learn, Pillow) are imported by that child alone:
they would add hundreds of MiB to the training process, which has a budget to keep.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from revedge.data.cache import FORMAT_VERSION, FrameCache
from revedge.data.child import run_child
from revedge.data.sources import DatasetInfo, Source, find_source
from revedge.errors import DataError, UsageError
from revedge.folders import cache_folder

_FULL_CHECK_BYTES = 256 * 2**20
_PUBLISH_TRIES = 5
_TIMESTEPS_LIMIT = 4096

PathLike = str | os.PathLike[str]


def describe(name: str, data_dir: PathLike | None = None, *, downsample: int = 1) -> DatasetInfo:
    """Return what a network must fit to; writes nothing.

    Args:
        name: digits, nmnist, dvsgesture, npz or folder.
        data_dir: where its files lie; digits needs none.
        downsample: nmnist and dvsgesture only: divide width and height by this.

    Raises:
        UsageError: no such name, or the files are not there.
        DataError: the files are damaged.
    """
    folder = _expanded(data_dir)
    return find_source(name, folder, downsample).describe()


def prepare(
    name: str,
    data_dir: PathLike | None = None,
    timesteps: int = 8,
    cache_dir: PathLike | None = None,
    *,
    downsample: int = 1,
) -> Path:
    """Return the folder of the data set's frame cache; a child process writes it if need be.

    A cache that is damaged, truncated or of another format version is written again. Of an
    existing one the sizes and labels are always checked, the frames up to 256 MiB.
    Several processes may prepare the same cache at once: one writes, the others wait for it.

    Args:
        name: digits, nmnist, dvsgesture, npz or folder.
        data_dir: where its files lie; digits needs none.
        timesteps: number of time bins T; static images have none, the value is ignored.
        cache_dir: parent of the caches; default `revedge.folders.cache_folder`.
        downsample: nmnist and dvsgesture only: divide width and height by this.

    Raises:
        UsageError: no such name, or the files are not there.
        DataError: the files are damaged, or the cache cannot be written.
        ModuleNotFoundError: the package that reads the files is not installed.
    """
    if not 1 <= timesteps <= _TIMESTEPS_LIMIT:
        raise UsageError(f"timesteps {timesteps} is not possible; use 1 to {_TIMESTEPS_LIMIT}")
    folder = _expanded(data_dir)
    source = find_source(name, folder, downsample)
    fixed = source.timesteps
    if fixed is not None and fixed != timesteps:
        raise UsageError(
            f"{folder} has {fixed} timesteps, not {timesteps}; use --timesteps {fixed}"
        )
    key = _key(source, timesteps, downsample)
    parent = _cache_root(cache_dir)
    steps = "static" if source.static else f"T{timesteps}"
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    final = parent / f"{name}-{steps}-{digest[:16]}"
    if _usable(final, key):
        return final
    with _lock(parent / f".{final.name}.lock") as alone:
        if _usable(final, key):  # written while this process waited
            return final
        if alone:
            for left in parent.glob(f".{final.name}.*.tmp"):  # of processes that were killed
                shutil.rmtree(left, ignore_errors=True)
        own = parent / f".{final.name}.{uuid.uuid4().hex}.tmp"
        try:
            run_child(
                {
                    "action": "build",
                    "name": name,
                    "data_dir": None if folder is None else str(folder),
                    "timesteps": timesteps,
                    "downsample": downsample,
                    "key": key,
                    "out": str(own),
                }
            )
            publish(own, final, key)
        finally:
            shutil.rmtree(own, ignore_errors=True)
    return final


def publish(own: Path, final: Path, key: dict[str, Any]) -> None:
    """Give the finished folder ``own`` its name; if another process was faster, keep its work.

    Raises:
        DataError: something else stands under that name.
    """
    for _ in range(_PUBLISH_TRIES):
        try:
            own.rename(final)
            return
        except OSError:  # there is something of that name
            if _usable(final, key):
                return
            grave = own.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
            with contextlib.suppress(OSError):
                final.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)
    raise DataError(f"cannot write the frame cache {final}; remove what stands there and try again")


def _usable(folder: Path, key: dict[str, Any]) -> bool:
    """Whether ``folder`` is a whole cache of that key; says so on stderr where it is damaged."""
    if not folder.is_dir():
        return False
    try:
        cache = FrameCache.open(folder)
        if cache.meta.get("key") != key:
            raise DataError(f"frame cache {folder} belongs to other data")
        if len(cache) * cache.sample_bytes <= _FULL_CHECK_BYTES:
            cache.check_frames()
    except DataError as error:
        print(f"revedge: {str(error).split(';')[0]}; writing it again", file=sys.stderr)
        return False
    return True


def _key(source: Source, timesteps: int, downsample: int) -> dict[str, Any]:
    """Everything that shapes the frames.

    Versions of tonic and of the others are not part of it (they stand in meta.json), so that a
    cache written on a PC serves a board that has none of them.
    """
    return {
        "format_version": FORMAT_VERSION,
        "name": source.name,
        "timesteps": None if source.static else timesteps,
        "downsample": downsample,
        "source": source.key,
    }


def _cache_root(cache_dir: PathLike | None) -> Path:
    root = Path(os.path.expanduser(cache_dir)).absolute() if cache_dir else cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{root} is not a folder; set REVEDGE_CACHE to one") from None
    except PermissionError:
        raise
    except OSError as error:
        fix = "set REVEDGE_CACHE to a folder that can be written"
        raise DataError(f"cannot make the cache folder {root}: {error.strerror}; {fix}") from None
    return root


def _expanded(data_dir: PathLike | None) -> Path | None:
    return None if data_dir is None else Path(os.path.expanduser(data_dir)).absolute()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold ``path`` locked; yields False where the file system has no locks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            name = path.name[1:].removesuffix(".lock")
            print(f"revedge: waiting for another process to write {name}", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)
