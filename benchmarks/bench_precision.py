"""What bfloat16 saves, and what it costs: bytes and seconds of a step by strategy, and test accuracy on digits.

Run: python benchmarks/bench_precision.py [--seeds 3] [--epochs 6] [--report FILE.md]
Bytes are those of two real steps in a fresh process, as `revedge plan --verify` takes them; seconds are the shortest of
three steps of a thread on a core, which other programs change little; accuracies are whole trainings
(`revedge train --precision ...`). Prints a line per row, and as its last line one JSON object.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import report
from bench_prediction import plan_of

from revedge import allocator, child
from revedge.planner import base
from revedge.planner.plan import Plan
from revedge.planner.precision import PRECISIONS, require_here
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient
from revedge.planner.verify import verify

NETS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "ms-resnet18": ({"width": 32}, ("store", "keep-conv", "keep-spikes", "reverse")),
    "revsresnet21": ({}, ("store", "keep-conv", "keep-spikes", "reverse")),
    "vgg11": ({"width": 32}, ("store", "keep-conv", "keep-spikes")),
    "spikingformer-2-256": ({"width": 128}, ("keep-conv", "keep-spikes", "reverse")),
}


def main() -> int:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description="Training in bfloat16 beside float32.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings on digits (3)")
    parser.add_argument("--epochs", type=int, default=6, help="of each training (6)")
    parser.add_argument("--report", type=Path, help="Markdown file")
    args = parser.parse_args()
    require_here("bfloat16")
    begun = report.machine()
    rows, steps = list[list[str]](), list[float]()
    bare = base.measure(1)
    with TraceClient() as client:
        for model, (options, strategies) in NETS.items():
            for strategy in strategies:
                setting = Setting(
                    model=model, model_options=options, in_shape=(3, 32, 32), num_classes=10,
                    timesteps=4, batch_size=16, micro_batch_size=16, strategy=strategy, threads=1,
                )  # fmt: skip
                plans = {
                    name: plan_of(dataclasses.replace(setting, precision=name), bare, client)
                    for name in PRECISIONS
                }
                rows.append([model, strategy, *compared(plans, steps)])
                print(*rows[-1], sep="  ", flush=True)
    accuracies = {
        name: [accuracy(name, seed, args.epochs) for seed in range(args.seeds)]
        for name in PRECISIONS
    }
    print(accuracies, flush=True)
    found = {
        "rows": len(rows),
        "median_time_ratio": statistics.median(steps),
        "largest_time_ratio": max(steps),
        "least_time_ratio": min(steps),
        **{f"mean_accuracy_{name}": statistics.mean(each) for name, each in accuracies.items()},
    }
    if args.report is not None:
        header = ["model", "strategy"]
        for name in PRECISIONS:
            header += [f"{name}: predicted MiB", "measured MiB", "excess", "step s"]
        header += ["bytes", "time"]
        seeds = [[name, *(f"{100 * a:.2f} %" for a in each)] for name, each in accuracies.items()]
        report.write(
            args.report,
            "Training in bfloat16 beside float32",
            report.command_line(),
            begun,
            [
                report.markdown_table(("figure", "value"), list(found.items())),
                report.markdown_table(header, rows),
                f"Test accuracy on digits after {args.epochs} epochs, evaluated in float32:",
                report.markdown_table(
                    ("precision", *(f"seed {n}" for n in range(args.seeds))), seeds
                ),
            ],
        )
    print(json.dumps(found))
    return 0


def compared(plans: dict[str, Plan], steps: list[float]) -> list[str]:
    """Return the cells of one row; ``steps`` gets the time of bfloat16 in that of float32."""
    seconds = dict(zip(plans, steps_s([Setting.of(plan) for plan in plans.values()]), strict=True))
    cells, peaks = list[str](), list[int]()
    for name, plan in plans.items():
        found = verify(plan)
        assert found.step_s is not None, found.problem
        predicted, measured = plan.predicted_peak_bytes, found.measured_peak_bytes
        cells += [f"{predicted / 2**20:.1f}", f"{measured / 2**20:.1f}"]
        cells += [f"{100 * (predicted - measured) / measured:+.2f} %", f"{seconds[name]:.3f}"]
        peaks.append(measured)
    full, low = PRECISIONS
    steps.append(seconds[low] / seconds[full])
    return [*cells, f"{(peaks[1] - peaks[0]) / 2**20:+.1f} MiB", f"{steps[-1]:.2f}"]


def steps_s(settings: list[Setting]) -> list[float]:
    """Return the shortest of three steps of each, seconds of its thread on a core."""
    done = subprocess.run(
        child.command("revedge.planner.time_probe"),
        input=json.dumps({"pairs": [[each.to_json()] for each in settings], "seconds": 120}),
        capture_output=True,
        env=child.environment(**allocator.preload(), OMP_NUM_THREADS="1"),
        text=True,
        check=True,
    )
    return [float(json.loads(line)[0][1]) for line in done.stdout.splitlines()]


def accuracy(precision: str, seed: int, epochs: int) -> float:
    """Train the planner's choice for digits in 400 MiB and return the accuracy on the test split."""
    with tempfile.TemporaryDirectory(prefix="revedge-bench-") as folder:
        done = subprocess.run(
            child.command("revedge.cli.main", "train", "--data", "digits", "--budget", "400MiB",
                          "--precision", precision, "--seed", str(seed), "--epochs", str(epochs),
                          "--threads", "1", "--out", f"{folder}/run", "--json"),
            env=child.environment(OMP_NUM_THREADS="1"),
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1])["test_accuracy"])


if __name__ == "__main__":
    main()
