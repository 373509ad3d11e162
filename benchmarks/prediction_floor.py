"""How repeatable a training's peak memory is, and how close to it a prediction that is never below it can lie.

Run: python benchmarks/prediction_floor.py --rows ROWS.jsonl [--count 10] [--times 5] [--report FILE.md]
Takes from the rows of bench_prediction.py those above its bar without the base, spread evenly over the size of their
excess, and trains each so many times in fresh processes. Above the base is the largest resident sum of supervisor and
trainer, less what both take without the network, which is measured anew as often. A prediction that is never under
lies at the largest of these figures at least: beside the smallest, that is its floor.
Prints a line per configuration and, as its last line, one JSON object.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import report
from bench_prediction import BAR_WITHOUT_BASE, plan_of, train, words

from revedge.planner import base
from revedge.planner.cost import form_of, predict
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient

MIB = 2**20


def bases(setting: Setting, form: str, times: int) -> list[int]:
    """Measure the trainer without the network so many times, in fresh processes."""
    arguments = ("trainer", "1", "cpu", base.family_of(setting.model), form, setting.precision)
    return [base.probe(*arguments) for _ in range(times)]


def chosen(rows: Path, count: int) -> list[Setting]:
    """Return ``count`` of the settings above the bar, from the least excess to the largest."""
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    above = [row for row in found if row.get("excess_without_base", 0) > BAR_WITHOUT_BASE]
    above.sort(key=lambda row: row["excess_without_base"])
    places = [round(i * (len(above) - 1) / max(1, count - 1)) for i in range(count)]
    return [Setting.from_json(above[place]["setting"]) for place in places]


def main() -> int:
    """Train each again and again."""
    parser = argparse.ArgumentParser(description="Repeatability of the peak memory of trainings.")
    parser.add_argument("--rows", type=Path, required=True, help="of bench_prediction.py")
    parser.add_argument("--count", type=int, default=10, help="configurations (10)")
    parser.add_argument(
        "--times", type=int, default=5, help="trainings of each, and of the base (5)"
    )
    parser.add_argument("--report", type=Path, help="Markdown file")
    args = parser.parse_args()
    bare, rows, floors = base.measure(1), list[list[str]](), list[float]()
    with TraceClient() as client:
        for setting in chosen(args.rows, args.count):
            plan = plan_of(setting, bare, client)
            alone = bases(setting, form_of(client.trace(setting)), args.times)
            peaks = list[int]()
            for _ in range(args.times):
                with tempfile.TemporaryDirectory(prefix="revedge-bench-") as folder:
                    outcome = train(plan, Path(folder))
                if "measured_peak_bytes" in outcome:
                    peaks.append(outcome["measured_peak_bytes"])
            computed = predict(setting, bare, client)
            slack = computed.parts["slack_bytes"]
            taken = computed.parts["base_bytes"] + computed.parts["supervisor_bytes"]
            above = [peak - taken for peak in peaks]
            # The base that a machine knows is one of those measured: it can lie as far off as they do.
            spread = max(above) - min(above) + max(alone) - min(alone)
            floors.append(spread / max(1, statistics.median(above)))
            traced = computed.predicted_peak_bytes - taken - slack
            rows.append(
                [
                    *words({"setting": setting.to_json(), "error": "-"})[:6],
                    f"{traced / MIB:.1f}",
                    f"{slack / MIB:.1f}",
                    " ".join(f"{each / MIB:.2f}" for each in above),
                    f"{(max(alone) - min(alone)) / MIB:.2f}",
                    f"{100 * floors[-1]:.1f} %",
                ]
            )
            print(*rows[-1], sep="  ", flush=True)
    result = {
        "configurations": len(rows),
        "floor_within_bar": sum(floor <= BAR_WITHOUT_BASE for floor in floors),
        "median_floor": statistics.median(floors),
        "largest_floor": max(floors),
    }
    if args.report is not None:
        header = ["model", "frames", "T", "batch/micro", "saved by", "optimizer", "traced MiB"]
        header += ["slack MiB", "measured above the base, MiB", "spread of the base, MiB", "floor"]
        report.write_figures(args.report, "Repeatability of measured memory", result, header, rows)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    main()
