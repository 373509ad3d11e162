"""How far real trainings lie above their rehearsals: what `revedge.planner.rehearsed.SPREAD_BYTES` has to cover.

Run: python benchmarks/rehearsed_trainings.py [--epochs 2] [--threads 1] [--precision float32] [--nets 14] [--tight]
    [--report FILE.md]
Trains small nets of all families on digits, by `revedge train` in fresh processes, each predicted by a rehearsal. With
--tight the budget is exactly the prediction, so that fence and watch are met if it is too low.
Prints a line per net and, as its last line, one JSON object.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import report
from bench_prediction import follow, plan_of, words

from revedge import data
from revedge.planner import base
from revedge.planner.precision import PRECISIONS
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient

MIB = 2**20
# Model, its options, T, batch, micro-batch, strategy, optimizer.
NETS: tuple[tuple[str, dict[str, Any], int, int, int, str, str], ...] = (
    ("revsformer-2-256", {"width": 16}, 8, 16, 16, "reverse", "adamw"),
    ("spikingformer-2-256", {"width": 16}, 4, 32, 32, "keep-spikes", "adamw"),
    ("vgg5", {"width": 8}, 4, 32, 32, "store", "adamw"),
    ("revsresnet11", {"width": 32}, 4, 16, 8, "reverse", "sgd"),
    ("plif-net7", {"width": 16}, 4, 32, 32, "store", "adamw"),
    ("resnet18", {"width": 4}, 4, 16, 16, "keep-spikes", "sgd"),
    ("preact-resnet18", {"width": 8, "depth": 14}, 2, 16, 16, "reverse", "adamw"),
    ("ms-resnet10", {"width": 16}, 8, 16, 16, "keep-conv", "adamw"),
    ("vgg5", {"width": 24, "neuron": "plif"}, 8, 16, 16, "keep-spikes", "sgd"),
    ("plif-net7", {"width": 8}, 8, 8, 8, "reverse", "adamw"),
    ("ms-resnet18", {"width": 8, "neuron": "plif"}, 4, 32, 32, "reverse", "adamw"),
    ("revsresnet24", {"width": 8}, 8, 16, 16, "reverse", "adamw"),
    ("revsresnet21", {"width": 16}, 8, 4, 4, "reverse", "adamw"),
    ("ms-resnet34", {"width": 8}, 4, 16, 16, "keep-spikes", "adamw"),
)


def setting_of(net: tuple[Any, ...], threads: int, precision: str) -> Setting:
    """Return the setting of one of `NETS` on digits."""
    names = ("model", "model_options", "timesteps", "batch_size", "micro_batch_size", "strategy")
    values = dict(zip((*names, "optimizer"), net, strict=True))
    return Setting(
        **values, in_shape=(2, 16, 16), num_classes=10, threads=threads, precision=precision
    )


def main() -> int:
    """Rehearse, train, compare."""
    parser = argparse.ArgumentParser(description="Real trainings above their rehearsals.")
    parser.add_argument("--epochs", type=int, default=2, help="(2)")
    parser.add_argument("--threads", type=int, default=1, help="(1)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="(float32)")
    parser.add_argument("--nets", type=int, default=len(NETS), help="how many of them (all)")
    parser.add_argument("--tight", action="store_true", help="budget = prediction")
    parser.add_argument("--report", type=Path, help="Markdown file")
    args = parser.parse_args()
    bare, rows, above, failed = base.measure(args.threads), list[list[str]](), list[float](), 0
    with TraceClient() as client:
        for net in NETS[: args.nets]:
            setting = setting_of(net, args.threads, args.precision)
            plan = plan_of(setting, bare, client)
            rehearsed = plan.predicted_peak_bytes - plan.parts["spread_bytes"]
            budget = plan.predicted_peak_bytes if args.tight else plan.budget_bytes
            real = {"data": "digits", "epochs": args.epochs, "learning_rate": 1e-3}
            plan = dataclasses.replace(plan, budget_bytes=budget, **real)
            cache = data.prepare("digits", None, plan.timesteps)
            with tempfile.TemporaryDirectory(prefix="revedge-bench-") as folder:
                found = follow(plan, cache, Path(folder) / "run", checkpoint_every_s=5.0)
            cells = words({"setting": setting.to_json(), "error": "-"})[:6]
            if "error" in found:
                failed += 1
                rows.append([*cells, f"{rehearsed / MIB:.2f}", found["error"].strip()[-60:], ""])
            else:
                measured = found["measured_peak_bytes"]
                above.append((measured - rehearsed) / MIB)
                figures = [f"{rehearsed / MIB:.2f}", f"{measured / MIB:.2f}", f"{above[-1]:+.2f}"]
                rows.append([*cells, *figures])
            print(*rows[-1], sep="  ", flush=True)
    result = {
        "trainings": len(rows),
        "failed or restarted": failed,
        "least_mib_above": min(above),
        "mean_mib_above": statistics.mean(above),
        "most_mib_above": max(above),
    }
    if args.report is not None:
        header = ["model", "frames", "T", "batch/micro", "saved by", "optimizer"]
        header += ["rehearsed MiB", "measured MiB", "above, MiB"]
        report.write_figures(
            args.report, "Real trainings and their rehearsals", result, header, rows
        )
    print(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
