"""The resident bytes of trainer and supervisor before the network: measured once per machine, then remembered."""

import json
import subprocess
from dataclasses import dataclass

from revedge import allocator, child
from revedge.errors import DeviceError
from revedge.planner.process import Memory, fingerprint

_RUNS = 2  # resident file pages differ by some 100 KiB from run to run: the larger counts
_PATIENCE_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """Resident bytes: of the trainer with torch loaded and warm, of the supervisor, on this machine."""

    trainer_bytes: int
    supervisor_bytes: int


def measure(threads: int, device: str = "cpu") -> Base:
    """Return the base of a training with ``threads`` CPU threads on ``device``; takes some seconds
    the first time.

    Raises:
        DeviceError: a measuring process failed.
    """
    memory = Memory("base.json", limit=100)
    key = fingerprint(threads=threads, device=device)
    known = memory.get(key)
    if known is None:
        known = {
            "trainer_bytes": max(_probe("trainer", str(threads), device) for _ in range(_RUNS)),
            "supervisor_bytes": max(_probe("supervisor") for _ in range(_RUNS)),
        }
        memory.set(key, known)
        memory.save()
    return Base(**known)


def _probe(*arguments: str) -> int:
    done = subprocess.run(
        child.command("revedge.planner.base_probe", *arguments),
        capture_output=True,
        env=child.environment(**allocator.preload()),
        text=True,
        check=False,
        timeout=_PATIENCE_S,
    )
    try:
        return int(json.loads(done.stdout.splitlines()[-1])["rss_bytes"])
    except (ValueError, IndexError, KeyError):
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DeviceError(
            f"the memory of a bare {arguments[0]} could not be measured: {last}"
        ) from None
