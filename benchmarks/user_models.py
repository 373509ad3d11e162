"""Predicted memory of models that are named by their code, against trainings of them.

Run: python benchmarks/user_models.py [--count 9] [--report FILE.md]
Three networks that know nothing of the engine (`user_nets.py`, and that of examples/04) at three sizes each, by
`revedge train` in fresh processes: two steps, an evaluation, checkpoints, on random frames. "computed" is the tracer's
prediction, "planned" that of the plan, which is rehearsed where the training is small. Prints a line per training, and
a JSON object last.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import report
from bench_prediction import plan_of, train

from revedge.planner import base
from revedge.planner.cost import predict
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient
from revedge.user_code import absolute, digest

MIB = 2**20
BAR = 0.05
HERE = Path(__file__).parent
NETS = str(HERE / "user_nets.py")
EXAMPLE = str(HERE.parent / "examples" / "04_your_own_model.py")  # a residual one
# Function, width, side, T, batch, strategy, optimizer, update in the backward pass.
ROWS: tuple[tuple[str, int, int, int, int, str, str, bool], ...] = (
    ("chain", 16, 16, 4, 16, "keep-spikes", "adamw", False),
    ("Net", 16, 16, 4, 16, "reverse", "sgd", True),
    ("Recurrent", 16, 16, 4, 16, "keep-spikes", "adamw", False),
    ("chain", 32, 24, 8, 16, "store", "sgd", False),
    ("Net", 32, 24, 8, 32, "keep-conv", "adamw", False),
    ("Recurrent", 32, 24, 8, 32, "reverse", "adamw", True),
    ("chain", 48, 32, 8, 32, "keep-conv", "adamw", False),
    ("Net", 48, 32, 12, 32, "store", "adamw", False),
    ("Recurrent", 64, 32, 12, 32, "keep-spikes", "sgd", False),
)


def setting_of(row: tuple[str, int, int, int, int, str, str, bool]) -> Setting:
    """Return the setting of one of `ROWS`."""
    function, width, side, timesteps, batch, strategy, optimizer, update = row
    name = absolute(f"{EXAMPLE if function == 'Net' else NETS}:{function}")
    return Setting(
        model=name,
        model_options={"width": width},
        in_shape=(2, side, side),
        num_classes=10,
        timesteps=timesteps,
        batch_size=batch,
        micro_batch_size=batch,
        strategy=strategy,
        update_in_backward=update,
        optimizer=optimizer,
        model_sha256=digest(name),
    )


def main() -> int:
    """Predict, train, compare."""
    parser = argparse.ArgumentParser(description="Predictions of users' models, measured.")
    parser.add_argument("--count", type=int, default=len(ROWS), help="how many of them (all)")
    parser.add_argument("--report", type=Path, help="Markdown file")
    args = parser.parse_args()
    rows, excess, failed = list[list[Any]](), dict[str, list[float]](), 0
    bare = base.measure(1)
    with TraceClient() as client:
        for row in ROWS[: args.count]:
            setting = setting_of(row)
            plan, computed = plan_of(setting, bare, client), predict(setting, bare, client)
            with tempfile.TemporaryDirectory(prefix="revedge-bench-") as folder:
                found = train(plan, Path(folder))
            how = f"{row[5]} {row[6]}{' update-in-backward' if row[7] else ''}"
            cells = [row[0], row[1], f"2x{row[2]}x{row[2]}", row[3], row[4], how]
            if "error" in found:
                failed += 1
                rows.append([*cells, found["error"].strip().splitlines()[-1][:80], "", ""])
            else:
                measured = found["measured_peak_bytes"]
                told = {"computed": computed.predicted_peak_bytes}
                told["planned"] = plan.predicted_peak_bytes
                for name, predicted in told.items():
                    excess.setdefault(name, []).append(predicted / measured - 1)
                cells.append(f"{measured / MIB:.1f}")
                rehearsed = " (rehearsed)" if "spread_bytes" in plan.parts else ""
                cells += [
                    f"{n / MIB:.1f}, {100 * (n / measured - 1):+.2f} %" for n in told.values()
                ]
                rows.append([*cells[:-1], cells[-1] + rehearsed])
            print(*rows[-1], sep="  ", flush=True)
    result: dict[str, Any] = {"trainings": len(rows), "failed": failed}
    for name, shares in excess.items():
        result[f"{name}, under"] = sum(each < 0 for each in shares)
        result[f"{name}, within 5 %"] = sum(0 <= each <= BAR for each in shares)
        result[f"{name}, most"] = f"{100 * max(shares):.2f} %"
    if args.report is not None:
        header = ["model", "width", "frames", "T", "batch", "saved by", "measured MiB"]
        header += ["computed MiB", "planned MiB"]
        title = "Memory of users' models: predicted and measured"
        report.write_figures(args.report, title, result, header, rows)
    print(json.dumps(result))
    good = not failed and all(0 <= each <= BAR for each in excess.get("planned", []))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
