"""Bytes of processes, read from /proc: cheap enough to sample 50 times a second.

One RSS sample is a `pread` of `/proc/PID/statm` on a file descriptor that is kept open (about 1.5 us); the peak since
the process started is `VmHWM` of `/proc/PID/status` (about 50 us). Neither needs psutil, torch or root.
"""

import functools
import os
import signal

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT_BYTES = 1 << 60  # cgroup 1 writes about 2^63 where there is no limit
_SWAP_EVERY = 3  # samples; it changes no faster than a disk writes


class ProcessMeter:
    """Resident bytes of one process, through one open file descriptor.

    Args:
        pid: the process; None means this one.

    Raises:
        ProcessLookupError: there is no such process.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.pid = os.getpid() if pid is None else pid
        try:
            self._statm = os.open(f"/proc/{self.pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ProcessLookupError(f"process {self.pid} does not exist") from None

    def rss_bytes(self) -> int:
        """Return the resident bytes now; 0 once the process has ended."""
        try:
            fields = os.pread(self._statm, 128, 0).split()
        except ProcessLookupError:
            return 0
        return int(fields[1]) * PAGE_BYTES if len(fields) > 1 else 0

    def close(self) -> None:
        """Close the file descriptor."""
        if self._statm >= 0:
            os.close(self._statm)
            self._statm = -1

    def __enter__(self) -> "ProcessMeter":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def status_bytes(pid: int | None = None) -> dict[str, int]:
    """Return the memory lines of `/proc/PID/status` in bytes (VmRSS, VmHWM, VmData, VmSwap, RssAnon, ...).

    Empty once the process has ended.
    """
    try:
        with open(f"/proc/{'self' if pid is None else pid}/status", encoding="ascii") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines}


def rss_peak_bytes(pid: int | None = None) -> int:
    """Return the largest resident bytes of a process since it started (0 once it has ended)."""
    return status_bytes(pid).get("VmHWM", 0)


def swap_bytes(pid: int | None = None) -> int:
    """Return the bytes of a process that stand in swap (0 once it has ended); about 50 us."""
    return status_bytes(pid).get("VmSwap", 0)


def available_bytes() -> int:
    """Return what this process tree may still take: MemAvailable, or less under a cgroup limit.

    On boards whose GPU shares the RAM this is the figure for both.
    """
    free = _meminfo_bytes().get("MemAvailable", 0)
    for limit_file, used_file in _cgroup_files():
        limit = _read_int(limit_file)
        if limit is None or limit >= _NO_LIMIT_BYTES:
            continue
        used = _read_int(used_file)
        if used is not None:
            reclaimable = _idle_cache_bytes(os.path.dirname(used_file))
            free = min(free, max(0, limit - max(0, used - reclaimable)))
    return free


def stalled_percent() -> float:
    """Return the share of the last 10 s in which every task waited for memory (PSI); 0 where it is not told."""
    try:
        with open("/proc/pressure/memory", encoding="ascii") as file:
            for line in file:
                if line.startswith("full avg10="):
                    return float(line[len("full avg10=") :].split()[0])
    except (OSError, ValueError):
        pass
    return 0.0


def total_bytes() -> int:
    """Return the RAM of the machine."""
    return _meminfo_bytes().get("MemTotal", 0)


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it started (0 if not told)."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


class PeakMeter:
    """The largest sum of resident and swapped bytes over a supervisor (this process) and one trainer.

    Swapped bytes count as resident ones: a budget is not kept by what only makes the training slow.
    `sample` catches what it sees; `add_trainer_peak` takes the kernel's own high-water mark of the trainer into
    account, which also holds the moments between two samples. The result is never below the true sum by more than the
    kernel's counter batches (some 100 KiB).
    """

    def __init__(self) -> None:
        self._own = ProcessMeter()
        self._trainer: ProcessMeter | None = None
        self._own_peak_bytes = self._own.rss_bytes()
        self.swap_bytes = 0  # of both, in the sum
        self._samples = 0
        self.now_bytes = self._own_peak_bytes
        self.peak_bytes = self._own_peak_bytes
        self.session_peak_bytes = 0  # with the trainer that is followed now, or was last
        self.device_bytes = 0  # reserved on an accelerator, as the trainer tells

    def follow(self, pid: int) -> None:
        """Sample the trainer `pid` from now on."""
        self.unfollow()
        self.session_peak_bytes = 0
        self._trainer = ProcessMeter(pid)

    def unfollow(self) -> None:
        """Forget the trainer: it has ended."""
        if self._trainer is not None:
            self._trainer.close()
        self._trainer = None
        self.device_bytes = self.swap_bytes = 0

    def kill(self) -> None:
        """End the trainer that is followed, at once."""
        if self._trainer is not None:
            os.kill(self._trainer.pid, signal.SIGKILL)

    def sample(self) -> int:
        """Take one sample of both processes and return their sum in bytes."""
        own = self._own.rss_bytes()
        self._own_peak_bytes = max(self._own_peak_bytes, own)
        trainer = 0
        if self._trainer is not None:
            trainer = self._trainer.rss_bytes()
            if self._samples % _SWAP_EVERY == 0:
                self.swap_bytes = swap_bytes() + swap_bytes(self._trainer.pid)
            if self._samples % 25 == 0:
                self.add_trainer_peak(rss_peak_bytes(self._trainer.pid))
        self._samples += 1
        self.now_bytes = own + trainer + self.swap_bytes + self.device_bytes
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        if self._trainer is not None:
            self.session_peak_bytes = max(self.session_peak_bytes, self.now_bytes)
        return self.now_bytes

    def add_trainer_peak(self, rss_bytes: int) -> None:
        """Count a trainer's own high-water mark (VmHWM, or `ru_maxrss` once it has ended)."""
        if rss_bytes:
            peak = self._own_peak_bytes + rss_bytes + self.device_bytes
            self.peak_bytes = max(self.peak_bytes, peak)
            self.session_peak_bytes = max(self.session_peak_bytes, peak)


def _meminfo_bytes() -> dict[str, int]:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return {}
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows if len(row) == 3}


@functools.cache
def _cgroup_files() -> list[tuple[str, str]]:
    """Return (limit, used) files of every cgroup above this process that has them, version 2 and 1; read once."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    files: list[tuple[str, str]] = []
    for words in lines:
        if len(words) != 3:
            continue
        two = words[1] == ""
        if not two and "memory" not in words[1].split(","):
            continue
        root = "/sys/fs/cgroup" if two else "/sys/fs/cgroup/memory"
        names = (
            ("memory.max", "memory.current")
            if two
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        folder = words[2].rstrip("/")
        while True:
            limit_file, used_file = (f"{root}{folder}/{name}" for name in names)
            if os.access(limit_file, os.R_OK):
                files.append((limit_file, used_file))
            if not folder:
                break
            folder = folder.rpartition("/")[0]
    return files


def _idle_cache_bytes(folder: str) -> int:
    """Return the file pages of a cgroup that nobody has used for a while: they count as used, and are free to take."""
    try:
        with open(f"{folder}/memory.stat", encoding="ascii") as file:
            found = dict(line.split() for line in file)
        return int(found.get("total_inactive_file", found.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def _read_int(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):  # not there, or "max"
        return None
