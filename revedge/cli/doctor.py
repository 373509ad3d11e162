"""`revedge doctor`: what this machine can do, what is missing, and what to do about it.

Whatever needs torch, or sets a limit that cannot be taken back, is tried in a child process.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from revedge import allocator, child
from revedge.cli.output import emit
from revedge.folders import cache_folder
from revedge.units import format_bytes

_EPILOG = """example:
  revedge doctor --json

exit code 1 only when training cannot work here"""
_CHILD_S = 180.0
_LEAST_BYTES = 512 * 2**20  # torch alone takes about 220 MiB
_OLDEST_TORCH = (2, 4)
# Float32 sums of 64 terms are off by 64 * 2**-24 at most, bfloat16 ones by 1e-4 and more.
_MOST_FLOAT32_ERROR = 1e-5
_OPTIONAL = {
    "tonic": ("data", "the data sets digits, nmnist and dvsgesture"),
    "scikit-learn": ("data", "the data set digits"),
    "onnx": ("export", "revedge export --format onnx"),
    "onnxruntime": ("runtime", "revedge run, and the check after revedge export"),
    "aedat": ("aedat4", "revedge run --input FILE.aedat4"),
    "matplotlib": ("report", "the picture in a run folder"),
}
# torch 2.4 computes float32 matrix products in bfloat16 on Arm CPUs that can, whatever precision is asked for.
_ASK_TORCH = """
import json
import torch
from revedge.kernels import native_status, triton_status
status = {key: str(value) for key, value in native_status().items()}
x = torch.linspace(0.1, 1.0, 64 * 64).view(64, 64)
product, exact = torch.nn.functional.linear(x, x).double(), x.double() @ x.double().t()
status["float32 error"] = float((product - exact).norm() / exact.norm())
if torch.cuda.is_available():
    status["triton"] = triton_status()["reason"] or "loaded"
print(json.dumps(status))
"""
# Asks for four times the limit: a fence that holds refuses it.
_ASK_FENCE = """
import mmap
from revedge.devices.fence import fence_data
fence_data(64 * 2**20)
try:
    mmap.mmap(-1, 256 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    print("false")
except OSError:
    print("true")
"""
_ASK_ALLOCATOR = """
from revedge.allocator import arena_bytes, return_freed_memory
returned = return_freed_memory()
print("arena" if arena_bytes() else "mallopt" if returned else "none")
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the answer; ``required`` ones decide the exit code."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    required: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there is nothing to choose."""
    parser.epilog = _EPILOG


def run(args: argparse.Namespace) -> int:
    """Print every check; return 1 if training cannot work here."""
    checks = [
        _python(),
        _torch(),
        _needed("numpy"),
        _memory(),
        _cache(),
        *_what_torch_does(),
        _bfloat16(),
        _fence(),
        _allocator(),
        *(_optional(name, *words) for name, words in _OPTIONAL.items()),
    ]
    can_train = all(check.ok for check in checks if check.required)
    lines = [_line(check) for check in checks]
    missing = sum(not check.ok for check in checks)
    if not can_train:
        lines.append("\ntraining cannot work here: see the lines with `missing` above")
    elif missing:
        lines.append(
            f"\ntraining works here; {missing} of {len(checks)} checks name what is missing"
        )
    else:
        lines.append("\ntraining works here, and nothing is missing")
    payload = {"can_train": can_train, "checks": [asdict(check) for check in checks]}
    emit(args, "\n".join(lines), payload)
    return 0 if can_train else 1


def _line(check: Check) -> str:
    state = "ok" if check.ok else "missing"
    advice = f"; {check.advice}" if check.advice and not check.ok else ""
    return f"{state:<8} {check.name:<16} {check.found}{advice}"


def _python() -> Check:
    return Check(
        name="python",
        ok=sys.version_info >= (3, 10),
        found=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        advice="install Python 3.10 or newer",
        required=True,
    )


def _torch() -> Check:
    from revedge.devices.probe import package_version

    version = package_version("torch")
    advice = "on a Jetson install the torch built for it, elsewhere: pip install 'revedge[train]'"
    ok = version is not None and _major_minor(version) >= _OLDEST_TORCH
    found = version or "not installed"
    return Check(name="torch", ok=ok, found=found, advice=advice, required=True)


def _major_minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _needed(name: str) -> Check:
    from revedge.devices.probe import package_version

    version = package_version(name)
    found, advice = version or "not installed", f"pip install {name}"
    return Check(name=name, ok=version is not None, found=found, advice=advice, required=True)


def _optional(name: str, extra: str, purpose: str) -> Check:
    from revedge.devices.probe import package_version

    version = package_version(name)
    return Check(
        name=name,
        ok=version is not None,
        found=version or f"not installed, needed for {purpose}",
        advice=f"pip install 'revedge[{extra}]'",
    )


def _memory() -> Check:
    from revedge.devices.probe import probe

    usable = probe().usable_bytes
    least = format_bytes(_LEAST_BYTES)
    found = f"{format_bytes(usable)} can be used now"
    advice = f"close other programs: the smallest training takes about {least}"
    ok = usable >= _LEAST_BYTES
    return Check(name="memory", ok=ok, found=found, advice=advice, required=True)


def _cache() -> Check:
    folder = cache_folder()
    there = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
    ok = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    advice = "name a folder that you can write in REVEDGE_CACHE"
    found = str(folder) if ok else f"{folder} cannot be written"
    return Check(name="cache", ok=ok, found=found, advice=advice, required=True)


def _what_torch_does() -> list[Check]:
    name = "C kernels"
    answer = _child(_ASK_TORCH)
    try:
        status = dict(json.loads(answer))
    except (TypeError, ValueError):  # torch did not start, and the answer is its error
        return [Check(name=name, ok=False, found=answer, advice="see the line of torch")]
    checks = [_c_kernels(name, status), _float32(status["float32 error"])]
    if "triton" in status:  # only where torch sees a GPU
        checks.append(_cuda_kernels(status["triton"]))
    return checks


def _c_kernels(name: str, status: dict[str, str]) -> Check:
    if status.get("loaded") == "True":
        threads = "OpenMP" if status.get("openmp") == "True" else "no OpenMP: one thread"
        return Check(name=name, ok=True, found=f"loaded, {threads}")
    found = (
        f"not loaded, slower PyTorch reference in use: {status.get('reason', 'no reason given')}"
    )
    return Check(name=name, ok=False, found=found, advice="install gcc, then install revedge again")


def _float32(error: float) -> Check:
    ok = error < _MOST_FLOAT32_ERROR
    found = (
        "linear layers" if ok else f"linear layers are off by {error:.0e}: this torch uses bfloat16"
    )
    advice = "exact numerics cannot hold; install torch 2.5 or set TORCH_MKLDNN_MATMUL_MIN_DIM=1000000000"
    return Check(name="float32", ok=ok, found=found, advice=advice)


def _cuda_kernels(state: str) -> Check:
    ok = state == "loaded"
    found = "Triton, loaded" if ok else f"slower PyTorch reference in use: {state}"
    advice = "install triton and gcc, which it needs at run time"
    return Check(name="CUDA kernels", ok=ok, found=found, advice=advice)


def _bfloat16() -> Check:
    from revedge.planner.precision import cpu_lacks_bfloat16

    lacks = cpu_lacks_bfloat16()
    return Check(
        name="bfloat16",
        ok=lacks is None,
        found=lacks
        or "convolutions on this CPU; whether that is faster says revedge plan --precision auto",
        advice="train with --precision float32, the default",
    )


def _fence() -> Check:
    ok = _child(_ASK_FENCE) == "true"
    found = "RLIMIT_DATA holds" if ok else "RLIMIT_DATA does not hold"
    advice = "the budget is then watched, but not enforced by the kernel"
    return Check(name="memory fence", ok=ok, found=found, advice=advice)


def _allocator() -> Check:
    answer = _child(_ASK_ALLOCATOR)
    if answer == "arena":
        return Check(name="allocator", ok=True, found="arena: freed memory waits for the next step")
    ok = answer == "mallopt"
    found = "mallopt: freed memory is given back, steps are up to twice as slow"
    advice = "budgets need up to twice the memory; use a system with glibc"
    return Check(
        name="allocator",
        ok=ok,
        found=found if ok else "no mallopt in this C library",
        advice=advice,
    )


def _child(code: str) -> str:
    """Return the last line that a child process prints, or the last line of its error."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=child.environment(PYTHONSAFEPATH="1", **allocator.preload()),
            capture_output=True,
            text=True,
            timeout=_CHILD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_CHILD_S:.0f} s"
    text = done.stdout if done.returncode == 0 else done.stderr
    lines = text.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
