"""Child processes of the planner, and what tells apart the machines and the code that they measure."""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import revedge
from revedge import allocator, child
from revedge.allocator import page_bytes

Ask = Callable[[str, Mapping[str, Any]], list[Any]]  # a measuring module, and what it is asked
_PACKAGE = Path(revedge.__file__).resolve().parent
_PATIENCE_S = 300.0  # for a child that measures
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
