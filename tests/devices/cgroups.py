"""A memory cgroup below this process's own, with a limit that the kernel really enforces; where one can be made."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# Its own interpreter counts too.
HOLD = """
import sys
anon = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
held = b"x" * (int(sys.argv[1]) - (int(anon.split()[1]) << 10))
print("held", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Group:
    """The folder of a cgroup and the names of its files, which differ between versions 1 and 2."""

    folder: Path
    limit_bytes: int
    kills_file: str

    def inside(self, *words: str) -> list[str]:
        """Return a command line that runs ``words`` in the group, from its first instruction on."""
        procs = self.folder / "cgroup.procs"
        return ["/bin/sh", "-c", f'echo $$ > {procs} && exec "$@"', "sh", *words]

    def kills(self) -> int:
        """Return how many processes of the group the kernel has killed for want of memory."""
        found = re.search(r"^oom_kill (\d+)$", (self.folder / self.kills_file).read_text(), re.M)
        return int(found[1]) if found else 0

    @contextlib.contextmanager
    def held(self, size_bytes: int, processes: int = 1) -> Iterator[None]:
        """Have other processes of the group hold so much memory together, all told, while the context lasts.

        The kernel may kill one of them right after a trainer, whose memory is not yet counted as free (seen: 2 ms).
        """
        each = str(size_bytes // processes)
        holders = [
            subprocess.Popen(
                self.inside(sys.executable, "-c", HOLD, each),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(processes)
        ]
        try:
            for holder in holders:
                assert holder.stdout is not None
                held = holder.stdout.readline() == b"held\n"
                assert held or (holder.wait() == -signal.SIGKILL and self.kills() > 1)
            yield
        finally:
            for holder in holders:
                holder.communicate()


@contextlib.contextmanager
def limited(limit_bytes: int, *, swap: bool = False) -> Iterator[Group | str]:
    """Make a group with this limit, and swap only if asked for; yields the reason where that cannot be.

    The group is removed afterwards.
    """
    made = _make(f"revedge-test-{os.getpid()}", limit_bytes, swap)
    try:
        yield made
    finally:
        if isinstance(made, Group):
            _remove(made.folder)


def _make(name: str, limit_bytes: int, swap: bool) -> Group | str:
    # Version 1 limits memory and swap together, version 2 swap alone.
    no_swap_1 = ("memory.memsw.limit_in_bytes", limit_bytes)
    no_swap_2 = ("memory.swap.max", 0)
    places = [
        (_ROOT / "memory", "memory", "memory.limit_in_bytes", "memory.oom_control", no_swap_1),
        (_ROOT, "", "memory.max", "memory.events", no_swap_2),
    ]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        for root, controller, limit_file, kills_file, (swap_file, swap_bytes) in places:
            if controller not in controllers.split(","):
                continue
            folder = root / own.strip("/") / name
            try:
                folder.mkdir()
            except OSError:
                continue
            try:
                (folder / limit_file).write_text(str(limit_bytes))
                if not swap and (folder / swap_file).exists():
                    (folder / swap_file).write_text(str(swap_bytes))
                return Group(folder, limit_bytes, kills_file)
            except (
                OSError
            ):  # version 2 gives a child no memory controller unless its parent is empty
                folder.rmdir()
    return "no memory cgroup can be made below this process's own (needs root, or a delegated one)"


def _remove(folder: Path) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            folder.rmdir()
            return
        except OSError:  # the last process is on its way out
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
