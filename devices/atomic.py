"""Files that are either the old one or the new one, never half of one, whatever is killed and whenever."""

import os
from collections.abc import Iterable
from pathlib import Path

Bytes = bytes | bytearray | memoryview


def replace_file(path: Path, chunks: Iterable[Bytes]) -> None:
    """Write `chunks` to `path`: temporary file, fsync, rename, fsync of the folder.

    The temporary file has a fixed name beside `path`, so a killed writer leaves at most one, which the next overwrites.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched, the temporary one gone.
    """
    temporary = temporary_of(path)
    try:
        with open(temporary, "wb", buffering=0) as file:
            for chunk in chunks:
                _write_all(file.fileno(), memoryview(chunk).cast("B"))
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` as `replace_file` does."""
    replace_file(path, [text.encode()])


def temporary_of(path: Path) -> Path:
    """Return the name under which `path` is written before it is renamed."""
    return path.with_name(f".{path.name}.tmp")


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, view: memoryview) -> None:
    while view:
        view = view[os.write(handle, view) :]
