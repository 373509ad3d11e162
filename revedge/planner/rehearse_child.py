"""Trains a plan for some steps in the very trainer: as a child, one JSON object on stdin, one line out.

``{"plan": TOML, "steps": N}`` -> ``peak_bytes`` (largest resident bytes of the trainer), ``resting_bytes`` (after its
warm-up, before the first step), ``steps`` that were made, ``step_s`` (the last one), ``same_addresses`` (the system
allows to start trainers so), and ``error`` where memory ran out
(``out_of_memory``) or the trainer failed.
After every step come an evaluation and a checkpoint. On random frames, and at learning rate 0: weights that random
frames have trained may leave the range of the grid. Nothing else differs from `revedge train`: the process that is
measured is that one, started as the supervisor starts it. This one stands in the supervisor's place.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from revedge import child
from revedge.planner.base_probe import status_bytes
from revedge.planner.plan import Plan

# On a core, of each thread: however busy the machine is, as many steps are made. No step is begun later than so long
# after the first, but one after an evaluation.
PATIENCE_S = 2.0
_LEAST_STEPS = 2  # however long they take: the second has the optimizer's state
_EXIT_STOPPED = 11  # of the trainer


def measure(plan: Plan, steps: int) -> dict[str, Any]:
    """Train ``plan`` for up to ``steps`` steps and return what was measured.

    Its budget is for the trainer and a supervisor of the predicted size; ``error`` is set where it has no clean end.
    """
    rounds = 1 if plan.micro_batch_size == plan.batch_size else 2  # two stand for any number
    plan = dataclasses.replace(
        plan, epochs=steps, learning_rate=0.0, batch_size=rounds * plan.micro_batch_size
    )
    with tempfile.TemporaryDirectory(prefix="revedge-") as name:
        folder = Path(name)
        _write_frames(plan, folder / "frames")
        run = _devices("run_folder").RunFolder(folder / "run")
        run.make()
        settings = _devices("run_folder").RunSettings(
            str(folder / "frames"), seed=0, checkpoint_every_s=0.0
        )
        run.begin(_with_this_beside(plan).to_toml(), settings)
        return _train(run, plan.threads)


def _train(run: Any, threads: int) -> dict[str, Any]:
    """Follow a trainer of ``run`` to its end."""
    reader, writer = os.pipe()
    orders = _devices("orders").Orders()
    words = ["--events", str(writer), "--orders", str(orders.handle), "--parent", str(os.getpid())]
    _stay_on(threads)
    with child.same_addresses() as same:
        process = subprocess.Popen(
            child.command("revedge.devices.trainer", str(run.path), *words),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            pass_fds=(writer, orders.handle),
            env=child.environment(),
        )
    os.close(writer)
    found: dict[str, Any] = {"same_addresses": same}
    with os.fdopen(reader, encoding="utf-8") as events:
        for event in map(json.loads, events):
            _note(found, event, process, threads)
    _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    orders.close()
    if code not in (0, _EXIT_STOPPED):
        how = (
            f"signal {-code}, as happens where memory runs out" if code < 0 else f"exit code {code}"
        )
        found.setdefault("error", f"the trainer was ended by {how}")
        found["out_of_memory"] = found.get("out_of_memory", code < 0)
    # The kernel counts what this process held when it started the trainer, too, which is less.
    found["peak_bytes"] = usage.ru_maxrss * 1024 + found.pop("device_bytes", 0)
    found.pop("until_cpu_s", None)
    return found


def _stay_on(cores: int) -> None:
    """Keep this process and its children on so many cores.

    Linux notes the largest resident set from a counter that leaves out up to 32 pages of each kind on every core where
    the process has been (seen: 0.2 MiB too low on two). A rehearsal that stays where it is is told to some 0.03 MiB.
    """
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or not allowed
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])


def _note(
    found: dict[str, Any], event: dict[str, Any], process: "subprocess.Popen[bytes]", threads: int
) -> None:
    """Take what an event tells; after an evaluation, end what has taken long enough."""
    kind = event["event"]
    found["device_bytes"] = max(found.get("device_bytes", 0), event.get("device_bytes", 0))
    if kind == "start":
        found["resting_bytes"] = event["base_bytes"]
        found["until_cpu_s"] = _cpu_s(process.pid) + threads * PATIENCE_S
    elif kind == "pace":
        found["step_s"] = event["steps_s"][-1]
    elif kind in ("error", "out_of_memory"):
        found["error"] = event["text"]
        found["out_of_memory"] = kind == "out_of_memory"
    elif kind == "epoch":
        found["steps"] = event["step"]
        late = _cpu_s(process.pid) > found["until_cpu_s"]
        if late and event["step"] >= _LEAST_STEPS - 1:
            process.send_signal(signal.SIGTERM)  # heard at the end of the next step


def _cpu_s(process: int) -> float:
    """Return the seconds that a child of this process has had on cores."""
    fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _with_this_beside(plan: Plan) -> Plan:
    """Return ``plan`` with this process as the supervisor: the trainer counts its parent against the budget."""
    own_bytes = status_bytes()["VmRSS"]
    more = own_bytes - plan.parts.get("supervisor_bytes", 0)
    parts = {**plan.parts, "supervisor_bytes": own_bytes}
    return dataclasses.replace(
        plan,
        parts=parts,
        predicted_peak_bytes=sum(parts.values()),
        budget_bytes=plan.budget_bytes + more,
    )


def _write_frames(plan: Plan, folder: Path) -> None:
    """Write a batch to train on and a micro-batch to evaluate: one random sample again and again."""
    rng = np.random.default_rng(0)
    shape = plan.in_shape if plan.static else (plan.timesteps, *plan.in_shape)
    sample = (rng.random(shape) < 0.2).astype(np.uint8)
    count = plan.batch_size + plan.micro_batch_size

    def frames() -> Iterator[np.ndarray]:
        for _ in range(count):
            yield sample

    writer: Any = importlib.import_module("revedge.data.writer")
    samples = writer.Samples(
        plan.in_shape,
        None if plan.static else plan.timesteps,
        tuple(map(str, range(plan.num_classes))),
        np.arange(count, dtype=np.int64) % plan.num_classes,
        plan.batch_size,
        1.0,
        frames(),
    )
    writer.write_cache(samples, folder, "random", {}, {})


def _devices(module: str) -> Any:
    """Return a module of a room that is above the planner, so it is named, not imported."""
    return importlib.import_module(f"revedge.devices.{module}")


def main() -> int:
    """Measure the plan on stdin."""
    asked = json.loads(sys.stdin.readline())
    print(json.dumps(measure(Plan.from_toml(asked["plan"]), asked["steps"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
