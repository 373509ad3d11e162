"""Time and memory of an exported file, in a process of its own: ``python -m revedge.export.measure FILE BATCH LOW``.

An ONNX file is run as on a board, with numpy and onnxruntime only; a TorchScript file needs torch.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from revedge import allocator, child
from revedge.errors import ExportError

MEASURED = (".onnx", ".pt")  # a .pt2 file is for interchange, and slower than the network itself
_CALLS, _WARM_UP = 20, 3
_LIMIT_S = 300.0


def measure(path: Path, batch: int, *, low_memory: bool = False) -> dict[str, Any]:
    """Measure a file in a child process.

    Args:
        path: of an ONNX or TorchScript file.
        batch: number of streams.
        low_memory: of the runner, for ONNX files.

    Returns:
        ``file_bytes``, ``load_ms``, ``step_ms`` (CPU time of one time step, median), ``measured_peak_bytes``, and
        ``running_bytes``: the resident set at the end, without what only loading needed.

    Raises:
        ExportError: the child failed.
    """
    import subprocess  # the child does not need it, and is measured

    words = child.command("revedge.export.measure", str(path), str(batch), str(int(low_memory)))
    env = child.environment(OMP_NUM_THREADS="1")
    try:
        done = subprocess.run(
            words, env=env, capture_output=True, text=True, timeout=_LIMIT_S, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        told = getattr(error, "stderr", None) or str(error)
        last = (str(told).strip().splitlines() or ["no reason given"])[-1]
        raise ExportError(f"{path.name} could not be measured: {last[:200]}") from None
    return found


def peak_rss_bytes() -> int:
    """Largest resident set that this process ever had.

    From VmHWM, which begins with the process; ru_maxrss may be that of the parent before exec.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rss_bytes() -> int:
    """Resident set of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _onnx(path: Path, batch: int, low_memory: bool) -> tuple[Any, int]:
    """Return a call, and how many time steps it makes."""
    from revedge.export.runner import StreamRunner

    runner = StreamRunner(path, low_memory=low_memory)
    told = runner.manifest
    frame = np.zeros((batch, *told.in_shape), np.float32)
    if told.graph == "step":
        runner.reset(batch)
        return lambda: runner.step(frame), 1
    steps = told.steps or told.timesteps
    x = frame if told.static else np.zeros((steps, *frame.shape), np.float32)

    def whole() -> None:
        runner.reset(batch)
        runner.sequence(x)

    return whole, steps


def _torchscript(path: Path, batch: int) -> tuple[Any, int]:
    import torch

    from revedge.export.torchscript import read_torchscript

    torch.set_num_threads(1)
    module: Any
    module, told = read_torchscript(path)
    x = torch.zeros(batch, *told["input"]["shape"])
    if told["graph"] == "stream":
        module.reset(batch)
        return lambda: module(x), 1
    states = [torch.full([batch, *state["shape"]], state["init"]) for state in told["states"]]
    return lambda: module(x, states), 1


def main() -> None:
    """Measure the file that was named."""
    allocator.return_freed_memory()
    path, batch, low_memory = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
    begin = time.process_time()
    is_onnx = path.suffix == ".onnx"
    call, steps = _onnx(path, batch, low_memory) if is_onnx else _torchscript(path, batch)
    load_ms = 1e3 * (time.process_time() - begin)
    spent = []
    for _ in range(_WARM_UP + _CALLS):
        begin = time.process_time()
        call()
        spent.append(1e3 * (time.process_time() - begin) / steps)
    found = {
        "file_bytes": path.stat().st_size,
        "load_ms": load_ms,
        "step_ms": sorted(spent[_WARM_UP:])[_CALLS // 2],
        "measured_peak_bytes": peak_rss_bytes(),
        "running_bytes": rss_bytes(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
