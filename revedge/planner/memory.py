"""What the planner remembers between runs: files in the cache folder, shared by all who use it."""

import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from revedge.folders import cache_folder

_UNTIL = "remembered_until_s"  # in an entry; seconds of the epoch
_MOST_FILES = 30  # of one kind, one for each state of the code: what edits have left behind
_LOCK_PATIENCE_S = 2.0


class Memory:
    """A JSON object in a file, the entry that was used last at its end. An entry can be remembered for a while only.

    A file that cannot be read or written is no error. Several processes may use it at once: each adds what is new to
    what the others have written meanwhile.

    Args:
        name: file name in the cache folder; it, or the keys, should hold a `revedge.planner.process.fingerprint`. Of
            names that differ in what stands behind a dash only, the files that were used last stay.
        limit: of entries; beyond it those go that were not used for longest.
    """

    def __init__(self, name: str, *, limit: int = 20_000) -> None:
        self._path = cache_folder() / name
        self._kind, self._dash, _ = self._path.stem.partition("-")
        self._limit = limit
        self._values = self._read()
        self._used: dict[str, None] = {}
        self._changed = False
        # To note every use would be to write at every plan; of entries that are not old, none needs to be noted.
        old = len(self._values) // 2 if len(self._values) > limit // 2 else 0
        self._old = frozenset(list(self._values)[:old])

    def get(self, key: str) -> Any:
        """Return what is remembered under ``key``, or None."""
        found = self._values.get(key)
        if not isinstance(found, dict) or time.time() > found.get(_UNTIL, math.inf):
            return None
        self._use(key)
        self._changed |= key in self._old
        return found

    def set(self, key: str, value: Mapping[str, Any], *, for_s: float | None = None) -> None:
        """Remember ``value`` (JSON-able), for so many seconds or for good; `save` writes it."""
        until = {} if for_s is None else {_UNTIL: time.time() + for_s}
        self._values[key] = {**value, **until}
        self._use(key)
        self._changed = True

    def save(self) -> None:
        """Write the file if anything is new: whole, or not at all."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self._path.with_name(f".{self._kind}.lock")):
                self._write()
        except OSError:
            return
        self._changed = False

    def _use(self, key: str) -> None:
        self._used.pop(key, None)
        self._used[key] = None

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        others = {key: value for key, value in self._read().items() if key not in self._used}
        own = {key: self._values[key] for key in self._used}
        kept = list((others | own).items())[-self._limit :]
        is_new = not self._path.exists()
        handle, name = tempfile.mkstemp(dir=self._path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(dict(kept), file)
            os.replace(name, self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        if is_new and self._dash:
            self._forget_files()

    def _forget_files(self) -> None:
        """Remove files of the same kind, for other states of the code, but those written last."""
        found = self._path.parent.glob(f"{self._kind}-*.json")
        for path in sorted(found, key=lambda each: each.stat().st_mtime_ns)[:-_MOST_FILES]:
            path.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time in; one that stands still in there holds others up for a moment only."""
    with path.open("w", encoding="utf-8") as file:
        until_s = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.01)
        yield
