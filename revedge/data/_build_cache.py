"""The child process that reads recordings and writes frames: ``python -m revedge.data._build_cache``.

It reads one JSON task from stdin and prints one JSON answer as the last line of stdout: the
result, or ``{"error": text, "kind": class}``. Progress goes to stderr.
"""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from revedge.data.npz_file import NpzFile, find_npz
from revedge.data.writer import Samples, write_cache
from revedge.errors import RevedgeError, UsageError

_REPORT_EVERY_S = 3.0
_READERS = ("numpy", "tonic", "scikit-learn", "pillow")


def open_samples(name: str, data_dir: Path | None, timesteps: int, downsample: int) -> Samples:
    """Return the data set ``name``, ready to be written; each import needs packages of its own.

    Raises:
        UsageError: no data set of that name, or its folder was not given.
    """
    if name == "digits":
        from revedge.data._digits import open_digits

        return open_digits(timesteps)
    if data_dir is None:
        raise UsageError(f"{name} is read from disk; pass its folder with --data-dir DIR")
    if name in ("nmnist", "dvsgesture"):
        from revedge.data import _recordings

        opener = _recordings.open_nmnist if name == "nmnist" else _recordings.open_dvsgesture
        return opener(data_dir, timesteps, downsample)
    if name == "npz":
        return _npz_samples(find_npz(data_dir))
    if name == "folder":
        from revedge.data._images import open_images

        return open_images(data_dir)
    raise UsageError(f"no data set is called {name!r}")


def _npz_samples(found: NpzFile) -> Samples:
    return Samples(
        in_shape=found.in_shape,
        timesteps=found.timesteps,
        class_names=tuple(str(label) for label in range(found.num_classes)),
        labels=np.concatenate([found.train.labels, found.test.labels]),
        num_train=len(found.train.labels),
        scale=1.0 if found.timesteps else 1 / 255,
        frames=found.frames(),
    )


class Progress:
    """Says on stderr how far a long build is; quiet for builds of a few seconds."""

    def __init__(self, name: str, total: int, parent_pid: int) -> None:
        self.name, self.total, self.parent_pid = name, total, parent_pid
        self.started_s = self.reported_s = time.monotonic()

    def __call__(self, done: int) -> None:
        """Report ``done`` samples; ends the process when nobody waits for it any more."""
        now_s = time.monotonic()
        if now_s - self.reported_s < _REPORT_EVERY_S:
            return
        self.reported_s = now_s
        if os.getppid() != self.parent_pid:
            raise SystemExit(1)
        rate = done / (now_s - self.started_s)
        left_s = (self.total - done) / rate
        text = f"{done} of {self.total}, {rate:.3g}/s, {left_s:.0f} s left"
        print(f"revedge: preparing {self.name}: {text}", file=sys.stderr, flush=True)


def build(task: dict[str, Any]) -> dict[str, Any]:
    """Write the cache that ``task`` describes."""
    data_dir = None if task["data_dir"] is None else Path(task["data_dir"])
    name = task["name"]
    samples = open_samples(name, data_dir, task["timesteps"], task["downsample"])
    progress = Progress(name, len(samples.labels), task["parent_pid"])
    write_cache(samples, Path(task["out"]), name, task["key"], _versions(), progress)
    return {"samples": len(samples.labels)}


def describe(task: dict[str, Any]) -> dict[str, Any]:
    """Return what a network must fit to, where that takes a reader: folders of images."""
    from revedge.data._images import describe_images

    return describe_images(Path(task["data_dir"]))


def _versions() -> dict[str, str]:
    found = {"revedge": _version("revedge"), **{name: _version(name) for name in _READERS}}
    return {name: version for name, version in found.items() if version}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def main() -> int:
    """Do one task; every error that a user can cause becomes one line of the answer."""
    task = json.load(sys.stdin)
    try:
        answer = build(task) if task["action"] == "build" else describe(task)
    except ModuleNotFoundError as error:
        answer = {"error": str(error), "kind": "ModuleNotFoundError", "module": error.name}
    except RevedgeError as error:
        kind = "UsageError" if isinstance(error, UsageError) else "DataError"
        answer = {"error": str(error), "kind": kind}
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        name = error.filename or task["data_dir"]
        text = f"{name}: {error.strerror or error}; check the file and the disk"
        answer = {"error": text, "kind": "DataError"}
    print(json.dumps(answer), flush=True)
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
