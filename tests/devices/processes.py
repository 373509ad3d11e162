"""What the tests of whole commands share: looking at processes and run folders from outside."""

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from revedge.devices.run_folder import RunFolder

DEADLINE_S = 120.0
Start = Callable[..., "subprocess.Popen[str]"]


def finish(process: "subprocess.Popen[str]", code: int = 0) -> dict:
    """Wait for the end, check the exit code, and return the JSON of the last line."""
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, err
    return json.loads(out.splitlines()[-1])


def digest(run: RunFolder) -> str:
    """Return the SHA-256 of the trained weights."""
    return hashlib.sha256(run.model.read_bytes()).hexdigest()


def trainer_of(process: "subprocess.Popen[str]") -> int | None:
    """Return the process id of a supervisor's trainer."""
    return child_of(process.pid, b"revedge.devices.trainer")


def child_of(pid: int, word: bytes) -> int | None:
    """Return a child of `pid` that has `word` in its command line."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        children = path.read_text().split()
    except OSError:
        return None
    for child in children:
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if word in words:
            return int(child)
    return None


def anon_bytes(pid: int) -> int:
    """Return the anonymous memory that a process holds now."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) << 10


def wait(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Wait until `condition` holds, while the process runs."""
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def reached(run: RunFolder, step: int) -> bool:
    """Return whether a checkpoint of `step` or later is there."""
    return newest(run) >= step


def newest(run: RunFolder) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    return max((int(p.stem[5:]) for p in run.checkpoints.glob("step-*.json")), default=0)
