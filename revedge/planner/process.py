"""Child processes of the planner, and the folder in which it remembers what they measured."""

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import revedge
from revedge import allocator, child
from revedge.allocator import page_bytes
from revedge.folders import cache_folder

Ask = Callable[[str, Mapping[str, Any]], list[Any]]  # a measuring module, and what it is asked
_PACKAGE = Path(revedge.__file__).resolve().parent
_PATIENCE_S = 300.0  # for a child that measures
_UNTIL = "remembered_until_s"  # in an entry; seconds of the epoch
_MEASURED_ROOMS = ("kernels", "neurons", "engine", "models", "planner", "data", "devices")


def fingerprint(**more: object) -> str:
    """Return a short text that changes with anything that a measurement depends on.

    That is: torch, Python, machine, kernel, page size, the code of the rooms that are traced or
    run and of the native library (size and modification time), and ``more``.
    """
    inherited = child.environment()
    facts: dict[str, object] = {
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "python": sys.version,
        "machine": list(platform.uname())[:5],
        "page_bytes": page_bytes(),
        # As the children that measure have it: the same asked for by `plan` and, from a child of its own, by `train`.
        "environment": {
            name: inherited.get(name)
            for name in (
                "REVEDGE_NO_NATIVE",
                "REVEDGE_NO_ARENA",
                "LD_PRELOAD",
                "OMP_NUM_THREADS",
                "OMP_WAIT_POLICY",
                "PYTHONHASHSEED",
            )
        },
        **more,
    }
    for room in _MEASURED_ROOMS:
        for path in sorted((_PACKAGE / room).rglob("*")):
            if path.suffix in (".py", ".so"):
                stat = path.stat()
                facts[str(path)] = [stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def answers(module: str, asked: Mapping[str, Any]) -> list[Any]:
    """Ask ``python -m module``, a child with a trainer's memory; return its lines of JSON, none if it is too slow."""
    try:
        done = subprocess.run(
            child.command(module),
            input=json.dumps(asked),
            capture_output=True,
            env=child.environment(**allocator.preload()),
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return []
    return [json.loads(line) for line in done.stdout.splitlines()]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Memory:
    """A JSON object in a file, remembered between runs; a file that cannot be read or written is no
    error. An entry can be remembered for a while only.

    Args:
        name: file name in the cache folder; it should hold a `fingerprint`.
        limit: with this many entries it starts afresh.
    """

    def __init__(self, name: str, *, limit: int = 20_000) -> None:
        self._path = cache_folder() / name
        self._limit = limit
        self._changed = False
        self.values: dict[str, Any] = {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict):
            self.values = found

    def get(self, key: str) -> Any:
        """Return what is remembered under ``key``, or None."""
        found = self.values.get(key)
        if isinstance(found, dict) and time.time() > found.get(_UNTIL, math.inf):
            return None
        return found

    def set(self, key: str, value: Mapping[str, Any], *, for_s: float | None = None) -> None:
        """Remember ``value`` (JSON-able), for so many seconds or for good; `save` writes it."""
        if len(self.values) >= self._limit:
            self.values.clear()
        until = {} if for_s is None else {_UNTIL: time.time() + for_s}
        self.values[key] = {**value, **until}
        self._changed = True

    def save(self) -> None:
        """Write the file if anything is new: whole, or not at all."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(self.values, file)
                os.replace(name, self._path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError:
            return
        self._changed = False
