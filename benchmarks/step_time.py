"""Predicted against measured time of a training step, over random configurations.

Run: python benchmarks/step_time.py [--count 36] [--seed 0] [--report FILE.md]
Draws configurations as bench_prediction.py does. Of each, two probes in one process predict an interval, then the
second of two real steps is timed in another. Prints a line per configuration and, as its last line, one JSON object:
how many took a time within their interval, and how far the middles were off. Some 10 s each on one core; whatever else
the machine does is in both figures.
"""

import argparse
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import report
from bench_prediction import draw, plan_of, words

from revedge.planner import base, step_time
from revedge.planner.trace_client import TraceClient
from revedge.planner.verify import verify


def main() -> int:
    """Draw, probe, measure, compare."""
    parser = argparse.ArgumentParser(description="Predicted against measured time of a step.")
    parser.add_argument("--count", type=int, default=36, help="configurations (36)")
    parser.add_argument("--seed", type=int, default=0, help="of the list (0)")
    parser.add_argument("--report", type=Path, help="Markdown file")
    args = parser.parse_args()
    rng, bare, rows = random.Random(args.seed), base.measure(1), list[list[str]]()
    within, ratios = 0, list[float]()
    with TraceClient() as client:
        for index in range(args.count):
            setting = draw(rng, client, 8e9, 1 << 30)
            (found,) = step_time.measure([setting])
            real_s = verify(plan_of(setting, bare, client)).step_s
            if found is None or real_s is None:
                print(f"{index:3}  not timed", flush=True)
                continue
            within += found.least_s <= real_s <= found.most_s
            ratios.append(found.middle_s / real_s)
            values: dict[str, Any] = {"setting": setting.to_json(), "error": "-"}
            interval = f"{found.least_s:.3f} to {found.most_s:.3f}"
            rows.append([*words(values)[:6], interval, f"{real_s:.3f}", f"{ratios[-1]:.2f}"])
            print(f"{index:3}", *rows[-1], sep="  ", flush=True)
    off = sorted(abs(math.log(ratio)) for ratio in ratios)
    result = {
        "configurations": len(ratios),
        "within": within,
        "median_factor_off": math.exp(statistics.median(off)),
        "largest_factor_off": math.exp(off[-1]),
    }
    if args.report is not None:
        header = ["model", "frames", "T", "batch/micro", "saved by", "optimizer"]
        header += ["predicted s", "measured s", "middle / measured"]
        report.write(
            args.report,
            "Predicted and measured time of a training step",
            report.command_line(),
            report.machine(),
            [
                report.markdown_table(("figure", "value"), list(result.items())),
                report.markdown_table(header, rows),
            ],
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    main()
