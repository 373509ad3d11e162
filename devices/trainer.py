"""The trainer: the process with torch in it. `python -m revedge.devices.trainer RUN_DIR ...`, by the supervisor only.

Its order matters: allocator policy, torch, the network and its checkpoint, the fence, one warm-up step, the fence again
(what stayed of that step is base now), training.
It imports torch, numpy and revedge's own rooms, nothing else: torch.optim alone would cost 72 MB.
It tells the supervisor what happens as JSON lines on a pipe.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from revedge import allocator
from revedge.devices import oom
from revedge.devices.meter import ProcessMeter
from revedge.devices.orders import Orders
from revedge.devices.parent import die_with_parent, let_kernel_choose_this_first
from revedge.devices.run_folder import RunFolder
from revedge.devices.watch import Watch
from revedge.errors import BudgetError, RevedgeError
from revedge.planner.plan import Plan
from revedge.units import format_bytes

EXIT_DONE, EXIT_OUT_OF_MEMORY, EXIT_STOPPED = 0, 10, 11
# Kept between the fence and the budget, for what RLIMIT_DATA does not see: the first C++ exception (an out-of-memory
# is one) reads 2.7 to 4.5 MiB of unwinding tables, and 1.5 MiB of pages that are mapped already are touched later
# (measured). The least where the prediction leaves no more: it is above what such a plan takes, so nothing will fail.
FENCE_MARGIN_BYTES, LEAST_MARGIN_BYTES = 6 << 20, 2 << 20
# What a training maps and never touches; the fence counts it, and a peak that was rehearsed does not: 6 of 36 trainings
# met a fence at 1 MiB below their rehearsal. So of such a plan nothing is kept that its budget has not beyond it.
UNTOUCHED_BYTES = 2 << 20
# Of that margin, for small blocks and generated code only: without it they are the first to meet the fence, and oneDNN
# then calls code that was never made (5 of 380 runs with a random fence; 0 of 470 with it).
HELD_BACK_BYTES = 2 << 20


class Reporter:
    """Writes events to the supervisor's pipe, one JSON object a line."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one event whole."""
        line = (json.dumps(event) + "\n").encode()
        while line:
            line = line[os.write(self._handle, line) :]


class StopRequest:
    """Set by SIGTERM; the loop asks for it after every step."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        # Ctrl-C reaches the whole process group; the supervisor answers it with one SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.asked


def main(argv: Sequence[str] | None = None) -> int:
    """Train one run folder to its end; the exit code says how it ended."""
    parser = argparse.ArgumentParser(prog="revedge.devices.trainer")
    parser.add_argument("run_dir")
    parser.add_argument("--events", type=int, required=True, help="file descriptor for events")
    parser.add_argument("--orders", type=int, required=True, help="file descriptor for orders")
    parser.add_argument("--parent", type=int, required=True, help="process id of the supervisor")
    args = parser.parse_args(argv)
    report, stop = Reporter(args.events), StopRequest()
    memory_error = ""
    try:
        die_with_parent(args.parent)
        let_kernel_choose_this_first()
        return _train(RunFolder(args.run_dir), report, stop, Orders(args.orders))
    except RevedgeError as error:
        report(
            {
                "event": "error",
                "kind": type(error).__name__,
                "text": str(error),
                "exit_code": error.exit_code,
            }
        )
        return error.exit_code
    except Exception as error:
        memory_error = oom.describe(error)
        if not oom.classify(f"{type(error).__name__}: {error}"):
            raise
        oom.release(error)
    # Only here, outside the except block, is what the failed step held really free.
    allocator.trim()
    report(
        {"event": "out_of_memory", "text": memory_error, "rss_bytes": ProcessMeter().rss_bytes()}
    )
    return EXIT_OUT_OF_MEMORY


def _train(run: RunFolder, report: Reporter, stop: StopRequest, wanted: Orders) -> int:
    allocator.return_freed_memory()
    plan = Plan.load(run.plan)
    # Here, not above: they import torch, which must find the allocator policy in place.
    from revedge.devices.build import make_loop, write_model
    from revedge.devices.loop_settings import Stopped
    from revedge.engine import look_between_units

    loop = make_loop(run, plan, report, stop)
    device_bytes = _device_meter(plan.device)
    watch = Watch(plan.budget_bytes, device_bytes, wanted)
    loop.saving.restore()
    if loop.position.step < loop.total_steps:
        _start_threads()
        # A plan that is wrong must not show it in the first pass.
        _fence(plan, watch, device_bytes(), warm=False)
        loop.warm_up()
    _fence(plan, watch, device_bytes(), warm=True)
    base_bytes = ProcessMeter().rss_bytes()
    loop.watch, loop.paused = watch, watch.paused
    watch.listen()
    look_between_units(watch.between_units)
    report(
        {
            "event": "start",
            "step": loop.position.step,
            "total_steps": loop.total_steps,
            "steps_per_epoch": loop.steps_per_epoch,
            "micro_batch_size": plan.micro_batch_size,
            "base_bytes": base_bytes,
            "last_epoch": loop.position.last_epoch,
            "device_bytes": device_bytes(),
        }
    )
    try:
        last_epoch = loop.run()
    except Stopped as stopped:
        report({"event": "stopped", "step": stopped.step})
        return EXIT_STOPPED
    finally:
        watch.listen(listening=False)
        look_between_units(None)
    write_model(run, plan, loop)
    looked = {"looks": watch.looks, "looked_s": round(watch.looked_s, 6)}
    report({"event": "done", **last_epoch, **looked, "device_bytes": device_bytes()})
    return EXIT_DONE


def _device_meter(device: str) -> Any:
    if device != "cuda":
        return lambda: 0
    import torch

    return lambda: int(torch.cuda.memory_reserved())


def _start_threads() -> None:
    """Have the threads of operators start; their stacks are writable memory that nobody fills."""
    import torch

    torch.ones(1 << 20).add_(1)


def _resting_bytes(plan: Plan) -> int:
    """Return what a plan predicts for this process between two steps."""
    names = ("base_bytes", "weights_bytes", "optimizer_bytes", "finish_bytes")
    return sum(plan.parts.get(name, 0) for name in names)


def margin_bytes(plan: Plan) -> int:
    """Return what is kept between the fence and the budget."""
    room, least = plan.budget_bytes - plan.predicted_peak_bytes, LEAST_MARGIN_BYTES
    if "spread_bytes" in plan.parts:  # a slack would have left room above what is touched
        room, least = room - UNTOUCHED_BYTES, 0
    return min(FENCE_MARGIN_BYTES, max(least, room))


def _fence(plan: Plan, watch: Watch, reserved_bytes: int, *, warm: bool) -> None:
    """Set, or move, the limit on what this process may still take.

    Before the first step of a process (not ``warm``) libraries have not loaded all their code, which is resident, and
    which no limit on writable memory sees: the base of the plan has it.

    Raises:
        BudgetError: nothing is left.
    """
    from revedge.devices import fence

    allocator.hold_back(0)
    allocator.trim()  # what is mapped and free could be taken again without the limit's noticing
    to_come = 0 if warm else max(0, _resting_bytes(plan) - ProcessMeter().rss_bytes())
    margin = margin_bytes(plan) + to_come
    left_bytes = watch.left_bytes() - margin
    if left_bytes <= 0:
        raise BudgetError(
            f"budget {format_bytes(plan.budget_bytes)} is used up before the first step (network loaded: "
            f"{format_bytes(watch.now_bytes() + to_come)}); give a larger --budget",
            floor_bytes=watch.now_bytes() + margin,
        )
    if plan.device == "cuda":
        # RLIMIT_DATA also counts what the CUDA driver maps, so only the pool is fenced.
        fence.fence_cuda(reserved_bytes + left_bytes)
    else:
        fence.fence_data(left_bytes + HELD_BACK_BYTES)
        if not allocator.hold_back(HELD_BACK_BYTES):
            fence.fence_data(left_bytes)


if __name__ == "__main__":
    # Without the interpreter's own end: taking torch down touches 2 MiB of code that training never does.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
