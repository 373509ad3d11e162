"""A board with little memory, another process that takes and frees it, and a look at a training from outside.

The board is a /proc/meminfo for one command, in a mount namespace of its own (this needs root): MemAvailable is the
board's RAM without the system's share and without what training and the other process really hold.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from processes import trainer_of

from revedge.devices.meter import status_bytes

_SYSTEM_BYTES = 100 << 20  # what the board's system holds
_EVERY_S = 0.005
_HOG = """
import mmap, random, sys, time
rng = random.Random(int(sys.argv[1]))
while True:
    size = rng.randrange(300, 1200) << 20
    taken = mmap.mmap(-1, size)
    for place in range(0, size, 4096):
        taken[place] = 1
    time.sleep(rng.uniform(0.1, 1.5))
    taken.close()
    time.sleep(rng.uniform(0.1, 1.0))
"""


class Board:
    """A /proc/meminfo for one command, in a mount namespace of its own."""

    def __init__(self, path: Path, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self.write(0)
        mount = 'mount --bind "$0" /proc/meminfo && exec "$@"'
        self.command = ["unshare", "--mount", "sh", "-c", mount, str(path)]

    def write(self, used_bytes: int) -> None:
        """Let the board have what `used_bytes` and the system leave; one write, always as long."""
        left = max(0, self._total_bytes - _SYSTEM_BYTES - used_bytes)
        rows = [("MemTotal:", self._total_bytes), ("MemAvailable:", left)]
        text = "".join(f"{name:<16}{size // 1024:>12} kB\n" for name, size in rows)
        os.pwrite(self._file, text.encode(), 0)


def watch(
    process: "subprocess.Popen[str]", limit_s: float, board: Board | None, hog_seed: int
) -> int:
    """Return the largest sum of resident and swapped bytes of supervisor and trainer, sampled every 5 ms.

    With a board a hog runs beside the trainer, from its first moment on: before, there is only planning. What the
    kernel saw of the trainer between two samples counts too.
    """
    peak = trainer = 0
    hog: subprocess.Popen[bytes] | None = None
    until = time.monotonic() + limit_s
    try:
        while process.poll() is None and time.monotonic() < until:
            own = status_bytes(process.pid)
            own_bytes = own.get("VmRSS", 0) + own.get("VmSwap", 0)
            if not trainer or not os.path.exists(f"/proc/{trainer}"):
                trainer = trainer_of(process.pid) or 0
            other = status_bytes(trainer) if trainer else {}
            if board is not None:
                others = status_bytes(hog.pid).get("VmRSS", 0) if hog else 0
                board.write(own_bytes + other.get("VmRSS", 0) + others)
            if trainer:
                resident = max(other.get("VmRSS", 0), other.get("VmHWM", 0))
                peak = max(peak, own_bytes + resident + other.get("VmSwap", 0))
                if board is not None and hog is None:
                    hog = subprocess.Popen([sys.executable, "-c", _HOG, str(hog_seed)])
            time.sleep(_EVERY_S)
    finally:
        if hog is not None:
            hog.kill()
            hog.wait()
    return peak
