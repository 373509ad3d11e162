"""Run one training step of a library in a fresh process, and get its row: the same meter on both sides.

Both get malloc's default environment: variables that change it are taken out. Our process sets its own policy by
itself, and its time counts under that policy.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from revedge import child

Row = dict[str, Any]

_STEP = Path(__file__).parent / "spikingjelly_step.py"
_TIMEOUT_S = 1800.0
HINT = "SpikingJelly is not installed: pip install --no-deps spikingjelly==2.0.0 loguru"


def has_spikingjelly() -> bool:
    """Whether the peer can be measured."""
    return all(importlib.util.find_spec(name) is not None for name in ("spikingjelly", "loguru"))


def spikingjelly(net: str, mode: str, timesteps: int, batch: int, *, repeats: int = 3) -> Row:
    """Return the row of SpikingJelly's ``net`` under ``mode`` ("stored" or "memopt")."""
    meter = importlib.util.find_spec("revedge.cli.step_meter")
    assert meter is not None
    assert meter.origin is not None
    options = {"net": net, "mode": mode, "timesteps": timesteps, "batch": batch, "repeats": repeats}
    return last_line(
        [sys.executable, str(_STEP), meter.origin, *_words(options)], _plain(os.environ)
    )


def revedge(
    net: str, strategy: str, timesteps: int, batch: int, *flags: str, repeats: int = 3
) -> list[Row]:
    """Return the rows of `revedge bench`, with library revedge.

    Raises:
        RuntimeError: it failed, or some strategy did.
    """
    options = {"net": net, "strategy": strategy, "timesteps": timesteps, "batch": batch}
    words = [*_words({**options, "repeats": repeats}), *flags, "--json"]
    command = child.command("revedge.cli.main", "bench", *words)
    answer = last_line(command, _plain(child.environment()))
    return [{"library": "revedge", **row} for row in answer["rows"]]


def _words(options: dict[str, Any]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def _plain(env: Any) -> dict[str, str]:
    return {
        key: value
        for key, value in env.items()
        if key not in ("LD_PRELOAD", "GLIBC_TUNABLES") and not key.startswith("MALLOC_")
    }


def last_line(command: list[str], env: dict[str, str]) -> Row:
    """Run ``command`` and return the JSON object that is its last line.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
    )
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise RuntimeError(f"{' '.join(command[1:])}: exit code {done.returncode}: {reason}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row
