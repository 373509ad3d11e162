"""Runs two real training steps and an evaluation at a plan's configuration: ``... verify_child
PLAN.toml``.

Behind the same fence and allocator policy as the trainer, with random data, so that nothing but the
plan is needed. Prints one JSON line: ``peak_bytes`` (largest resident bytes of this process),
``base_bytes`` (before the first step), ``step_s`` (the second step), and ``error`` where memory ran
out.
"""

import json
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

from revedge import allocator
from revedge.planner.base_probe import TRAINER_MODULES, load, status_bytes
from revedge.planner.plan import Plan
from revedge.planner.setting import Setting


def measure(plan: Plan) -> dict[str, Any]:
    """Rehearse ``plan`` in the order of the trainer, and return what was measured."""
    load(TRAINER_MODULES)
    import torch

    from revedge.planner.step import Rehearsal

    torch.set_num_threads(plan.threads)
    rehearsal = Rehearsal(Setting.of(plan), plan.device)
    rehearsal.warm_up()
    allocator.trim()
    base = status_bytes()
    if plan.device == "cpu":  # the CUDA driver maps much that it never uses
        supervisor = plan.parts.get("supervisor_bytes", 0)
        _fence(plan.budget_bytes - supervisor - base["VmRSS"], base["VmData"])
    found: dict[str, Any] = {"base_bytes": base["VmRSS"]}
    try:
        for _ in range(2):
            began_s = time.perf_counter()
            rehearsal.train_step()
            found["step_s"] = time.perf_counter() - began_s
        rehearsal.evaluate()
    except (RuntimeError, MemoryError) as error:
        found["error"] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    found["peak_bytes"] = _peak_bytes(plan.device)
    return found


def _fence(allowed_bytes: int, data_bytes: int) -> None:
    limit = data_bytes + max(0, allowed_bytes)
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


def main(argv: Sequence[str]) -> int:
    """Measure the plan in the file ``argv[0]``."""
    allocator.return_freed_memory()
    print(json.dumps(measure(Plan.load(argv[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
