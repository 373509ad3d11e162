"""Runs two real training steps and an evaluation of a setting: as a child, one JSON object on stdin, one line out.

``{"setting": {...}, "allowed_bytes": N or null}`` -> ``peak_bytes`` (largest resident bytes of this process),
``resting_bytes`` (at the end, of a network that does nothing), ``step_s`` (the second step), and ``error`` where memory
ran out. In the order of the trainer, under its allocator policy, with its checks and checkpoints, on random frames; all
that is not done is learning. ``allowed_bytes`` is the fence: what the process may take, null for no fence.
"""

import gc
import importlib
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from revedge import allocator
from revedge.planner.base_probe import TRAINER_MODULES, load, status_bytes
from revedge.planner.setting import Setting

_STEPS = 2


def measure(setting: Setting, allowed_bytes: int | None) -> dict[str, Any]:
    """Rehearse ``setting``, and return what was measured."""
    load(TRAINER_MODULES)
    import torch

    from revedge.planner.step import Rehearsal

    torch.set_num_threads(setting.threads)
    rehearsal = Rehearsal(setting, setting.device)
    rehearsal.warm_up()
    allocator.trim()
    if allowed_bytes is not None and setting.device == "cpu":
        # The CUDA driver maps much that it never uses.
        before = status_bytes()
        _fence(allowed_bytes - before["VmRSS"], before["VmData"])
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="revedge-") as folder:
            checkpoint = Path(folder) / "checkpoint"
            rehearsal.net.set_check("checksum")  # as the trainer does in its first steps
            for _ in range(_STEPS):
                began_s = time.perf_counter()
                rehearsal.train_step()
                found["step_s"] = time.perf_counter() - began_s
                _save(rehearsal.named_tensors(), checkpoint)
            rehearsal.evaluate()
            _save(rehearsal.named_tensors(), checkpoint)
    except (RuntimeError, MemoryError) as error:
        found["error"] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    found["peak_bytes"] = _peak_bytes(setting.device)
    gc.collect()
    allocator.trim()
    found["resting_bytes"] = status_bytes()["VmRSS"]
    return found


def _save(tensors: dict[str, Any], path: Path) -> None:
    """Write a checkpoint as the trainer does; its room is above the planner, so it is named, not imported."""
    importlib.import_module("revedge.devices.tensor_file").write_tensors(path, tensors)


def _fence(left_bytes: int, data_bytes: int) -> None:
    limit = data_bytes + max(0, left_bytes)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _peak_bytes(device: str) -> int:
    found = status_bytes()
    reserved = 0
    if device == "cuda":
        import torch

        reserved = torch.cuda.max_memory_reserved()
    return max(found["VmHWM"], found["VmRSS"]) + reserved


def main() -> int:
    """Measure the setting on stdin."""
    allocator.return_freed_memory()
    asked = json.loads(sys.stdin.readline())
    print(json.dumps(measure(Setting.from_json(asked["setting"]), asked["allowed_bytes"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
