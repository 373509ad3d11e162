"""What this machine really offers, read from /proc, /sys and installed metadata; imports no torch.

On boards whose GPU shares the RAM, MemAvailable is the figure that counts for both: what CUDA calls
free leaves out memory that the page cache would give back.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from revedge.devices.bandwidth import copy_bytes_per_s

_UNLIMITED_BYTES = 2**60  # cgroup version 1 writes "no limit" as a number near 2**63
_CHILD_S = 180.0  # torch with CUDA takes a minute to import on a small board
_ASK_TORCH = """
import json, torch
gpus = []
for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    p = torch.cuda.get_device_properties(i)
    gpus.append({
        "name": p.name, "memory_bytes": p.total_memory, "sm_count": p.multi_processor_count,
        "compute_capability": f"{p.major}.{p.minor}",
        "unified_memory": bool(getattr(p, "is_integrated", False)),
    })
print(json.dumps(gpus))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One CUDA device as torch sees it."""

    name: str
    memory_bytes: int
    sm_count: int
    compute_capability: str
    unified_memory: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """This machine at one moment; None stands for what it does not tell.

    ``usable_bytes`` is what a new process may take: MemAvailable, or what a cgroup allows.
    ``bandwidth_bytes_per_s`` is of a copy, read and written bytes together; None when nobody asked.
    ``gpus`` is None when nobody asked, or when torch could not be asked (``gpu_note`` says why).
    """

    board: str | None
    tegra: bool
    l4t: str | None
    power_mode: str | None
    power_modes: tuple[str, ...]
    architecture: str
    kernel: str
    cpu: str | None
    cpu_cores: int
    cpu_cores_allowed: int
    page_size_bytes: int
    mem_total_bytes: int
    mem_available_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    cgroup_limit_bytes: int | None
    cgroup_used_bytes: int | None
    usable_bytes: int
    bandwidth_bytes_per_s: int | None
    python_version: str
    torch_version: str | None
    gpus: tuple[Gpu, ...] | None
    gpu_note: str

    def to_dict(self) -> dict[str, Any]:
        """Return what ``revedge devices probe --json`` prints; units are in the keys."""
        return asdict(self)


def probe(*, gpu: bool = False, bandwidth: bool = False, root: Path = Path("/")) -> Machine:
    """Return what this machine offers now.

    Args:
        gpu: ask torch for CUDA devices, in a child process (seconds; a minute on a small board).
        bandwidth: copy some memory to see how fast that is (below a second).
        root: where /proc, /sys and /etc are looked for.
    """
    memory = _meminfo_bytes(root)
    limit, used = _cgroup(root)
    available = memory.get("MemAvailable", memory.get("MemFree", 0))
    compatible = _text(root / "proc/device-tree/compatible") or ""
    l4t = _text(root / "etc/nv_tegra_release")
    found, note = ask_torch() if gpu else (None, "not asked")
    return Machine(
        board=_text(root / "proc/device-tree/model"),
        tegra="nvidia,tegra" in compatible or l4t is not None,
        l4t=l4t.splitlines()[0].lstrip("# ") if l4t else None,
        power_mode=_power_mode() if root == Path("/") else None,
        power_modes=_power_modes(root),
        architecture=platform.machine(),
        kernel=platform.release(),
        cpu=_cpu_name(root),
        cpu_cores=os.cpu_count() or 1,
        cpu_cores_allowed=len(os.sched_getaffinity(0)),
        page_size_bytes=os.sysconf("SC_PAGE_SIZE"),
        mem_total_bytes=memory.get("MemTotal", 0),
        mem_available_bytes=available,
        swap_total_bytes=memory.get("SwapTotal", 0),
        swap_free_bytes=memory.get("SwapFree", 0),
        cgroup_limit_bytes=limit,
        cgroup_used_bytes=used,
        usable_bytes=available if limit is None else max(0, min(available, limit - (used or 0))),
        bandwidth_bytes_per_s=copy_bytes_per_s() if bandwidth else None,
        python_version=platform.python_version(),
        torch_version=package_version("torch"),
        gpus=found,
        gpu_note=note,
    )


def package_version(name: str) -> str | None:
    """Return the installed version of a package without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> str | None:
    """Return a small system file's text (device-tree strings end in NUL), or None."""
    try:
        return path.read_text("utf-8", errors="replace").replace("\0", " ").strip() or None
    except OSError:
        return None


def _meminfo_bytes(root: Path) -> dict[str, int]:
    rows = (line.split() for line in (_text(root / "proc/meminfo") or "").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def _cpu_name(root: Path) -> str | None:
    """Return the processor's name; where the kernel gives none, the device tree's word."""
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return _text(root / "proc/device-tree/cpus/cpu@0/compatible")


def _cgroup(root: Path) -> tuple[int | None, int | None]:
    """Return (limit, used) of the tightest memory cgroup of this process, version 2 or 1."""
    tightest: tuple[int | None, int | None] = (None, None)
    limits: tuple[str, ...]
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, limits, used_name = (
                "sys/fs/cgroup",
                ("memory.max", "memory.high"),
                "memory.current",
            )
        elif "memory" in controllers.split(","):
            base, limits = "sys/fs/cgroup/memory", ("memory.limit_in_bytes",)
            used_name = "memory.usage_in_bytes"
        else:
            continue
        folder = root / base / path.strip("/")
        for level in (folder, *folder.parents):  # a container may see its own group at the top
            if not level.is_relative_to(root / base):
                break
            for name in limits:
                limit = _number(level / name)
                if limit is not None and limit < min(
                    tightest[0] or _UNLIMITED_BYTES, _UNLIMITED_BYTES
                ):
                    tightest = (limit, _number(level / used_name))
    return tightest


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdigit() else None  # "max" is no number


def _power_mode() -> str | None:
    """Return the line in which a Jetson names its power mode."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if "Power Mode" in line]
    return lines[0].partition(":")[2].strip() if lines else None


def _power_modes(root: Path) -> tuple[str, ...]:
    """Return the names of the power modes that a Jetson can be set to."""
    text = _text(root / "etc/nvpmodel.conf") or ""
    return tuple(re.findall(r"<\s*POWER_MODEL\s+ID=\d+\s+NAME=(\S+)\s*>", text))


def ask_torch() -> tuple[tuple[Gpu, ...] | None, str]:
    """Return the CUDA devices that torch sees, asked in a child process, and what there is to say if there are none."""
    if package_version("torch") is None:
        return None, "torch is not installed"
    words = [sys.executable, "-c", _ASK_TORCH]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_CHILD_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"torch did not answer within {_CHILD_S:.0f} s"
    try:
        gpus = tuple(Gpu(**one) for one in json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return None, f"torch could not be asked: {last[0]}"
    return gpus, "" if gpus else "torch sees no CUDA device"
