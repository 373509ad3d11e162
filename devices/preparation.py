"""What needs numpy or more before training starts, done by a child process that ends before the trainer begins.

`python -m revedge.devices.preparation` reads one JSON request from stdin and answers with one JSON line: the frame
cache's path and the shape of the data. So the supervisor never imports numpy.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from revedge import errors
from revedge.errors import RevedgeError


@dataclass(frozen=True)
class PreparedData:
    """Where the frames are and what a network must look like to take them."""

    cache: str
    in_shape: tuple[int, int, int]
    num_classes: int
    static: bool
    sample_bytes: int


def prepare_data(name: str, data_dir: str | None, timesteps: int) -> PreparedData:
    """Have a child process find or write the frame cache of a data set.

    Raises:
        UsageError, DataError: as `revedge.data.prepare`.
        ModuleNotFoundError: a package that reads this data set is not installed.
    """
    answer = run_child({"name": name, "data_dir": data_dir, "timesteps": timesteps})
    return PreparedData(**{**answer, "in_shape": tuple(answer["in_shape"])})


def run_child(request: dict[str, Any]) -> dict[str, Any]:
    """Run this module in a child with one request; raise what it raised."""
    from revedge.devices.supervisor import child_environment

    done = subprocess.run(
        [sys.executable, "-m", "revedge.devices.preparation"],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        env=child_environment(),
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise RevedgeError(
            f"data {request['name']!r} could not be prepared (exit code {done.returncode}); see the lines above"
        ) from None
    if "error" not in answer:
        return dict(answer)
    if answer["kind"] == "ModuleNotFoundError":
        raise ModuleNotFoundError(answer["error"], name=answer["name"])
    raise getattr(errors, answer["kind"], RevedgeError)(answer["error"])


def main() -> int:
    """Answer one request."""
    request = json.loads(sys.stdin.readline())
    try:
        answer = _prepare(**request)
    except (RevedgeError, ModuleNotFoundError) as error:
        answer = {
            "error": str(error),
            "kind": type(error).__name__,
            "name": getattr(error, "name", None),
        }
    print(json.dumps(answer), flush=True)
    return 0


def _prepare(name: str, data_dir: str | None, timesteps: int) -> dict[str, Any]:
    from revedge import data

    info = data.describe(name, data_dir)
    path = data.prepare(name, data_dir, timesteps)
    frames = data.FrameCache.open(path)
    return {
        "cache": str(path),
        "in_shape": list(info.in_shape),
        "num_classes": info.num_classes,
        "static": info.static,
        "sample_bytes": frames.sample_bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
