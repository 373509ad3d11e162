"""What the guard costs while nothing happens: the trainer's looks between units, and the supervisor's samples.

Run: python benchmarks/watch_cost.py [--epochs 3] [--report FILE.md]
Whole trainings of the digits with nets of short and of long steps. The trainer counts its looks and their time, which
the log line `done` holds; the supervisor, this process here, counts its own CPU time. Both are given as parts of the
time from the first step to the end, the supervisor's over all cores. Exit code 1 if the sum is 0.5 % or more.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import command_line, machine, markdown_table, write

from revedge.devices.metrics_log import read_metrics
from revedge.devices.preparation import prepare
from revedge.devices.progress import Progress
from revedge.devices.run_folder import RunFolder, RunSettings
from revedge.devices.supervisor import Supervisor

BAR = 0.005
CASES: tuple[dict[str, Any], ...] = (
    {"model": "vgg5", "timesteps": 2, "batch_size": 8},
    {"model": "revsresnet11", "timesteps": 8, "batch_size": 32},
    {"model": "ms-resnet10", "timesteps": 8, "batch_size": 32},
    {"model": "revsresnet67", "timesteps": 8, "batch_size": 16},
)
HEADER = ("net", "T", "batch", "ms per step", "looks per step", "us per look")
HEADER += ("looks, % of a step", "supervisor, % of the cores", "sum, %")


def measure(case: dict[str, Any], epochs: int) -> tuple[list[str], float]:
    """Train, and return a row and the share of the guard."""
    cores = len(os.sched_getaffinity(0))
    wanted = {"budget_bytes": 2 << 30, "data": "digits", "data_dir": None, "threads": cores}
    prepared = prepare(wanted | case)
    with tempfile.TemporaryDirectory(prefix="revedge-watch-") as name:
        run = RunFolder(Path(name) / "run")
        run.make()
        plan = dataclasses.replace(prepared.plan, epochs=epochs)
        run.begin(plan.to_toml(), RunSettings(prepared.cache, 0), ladder_text=prepared.ladder)
        progress = Progress(plan.budget_bytes, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        began_cpu_s, began_s = time.process_time(), time.monotonic()
        outcome = Supervisor(run, run.lock(), progress).train()
        own_s, wall_s = time.process_time() - began_cpu_s, time.monotonic() - began_s
        lines = read_metrics(run.metrics)
    assert outcome.done is not None
    start_s = next(line["time_s"] for line in lines if line["event"] == "start")
    done = next(line for line in lines if line["event"] == "done")
    trained_s, steps = done["time_s"] - start_s, done["step"]
    looking, sampling = done["looked_s"] / trained_s, own_s / wall_s / cores
    cells = [
        case["model"],
        case["timesteps"],
        case["batch_size"],
        f"{1000 * trained_s / steps:.1f}",
    ]
    cells += [f"{done['looks'] / steps:.1f}", f"{1e6 * done['looked_s'] / done['looks']:.1f}"]
    cells += [f"{100 * share:.2f}" for share in (looking, sampling, looking + sampling)]
    return [str(cell) for cell in cells], looking + sampling


def main() -> int:
    """Measure every case, print, write."""
    parser = argparse.ArgumentParser(description="What the guard costs while nothing happens.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    about, rows, worst = machine(), list[list[str]](), 0.0
    for case in CASES:
        cells, share = measure(case, args.epochs)
        rows.append(cells)
        worst = max(worst, share)
        print("  ".join(cells), flush=True)
    text = markdown_table(HEADER, rows)
    if args.report is not None:
        shape = f"digits, {args.epochs} epochs, evaluation and checkpoints included. Bar: {100 * BAR} %."
        write(args.report, "What the guard costs", command_line(), about, [shape, text])
    print(json.dumps({"worst_share": worst, "met": worst < BAR}))
    return 0 if worst < BAR else 1


if __name__ == "__main__":
    sys.exit(main())
