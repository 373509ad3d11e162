"""Predicted against measured time of a training step, over random configurations.

Run: python benchmarks/step_time.py [--count 36] [--seed 0] [--report FILE.md]
Draws configurations as bench_prediction.py does, with more than 64 frames in a micro-batch, so that there is something
to predict. Of each a child times steps at 16 and 64 frames, which is what `revedge plan` does, and of the whole
micro-batch. Compared are the seconds of its thread on a core, which other programs change little; the interval is the
plan's. Prints a line per configuration and, as its last line, one JSON object.
"""

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
from pathlib import Path
from typing import Any

import report
from bench_prediction import words
from drawn import Drawn, Limits

from revedge import allocator, child
from revedge.planner import step_time
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient


def main() -> int:
    """Draw, probe, measure, compare."""
    parser = argparse.ArgumentParser(description="Predicted against measured time of a step.")
    parser.add_argument("--count", type=int, default=36, help="configurations (36)")
    parser.add_argument("--seed", type=int, default=0, help="of the list (0)")
    parser.add_argument("--report", type=Path, help="Markdown file")
    args = parser.parse_args()
    limits, settings = Limits(multiplications=4e9, live_bytes=1 << 30), list[Setting]()
    with TraceClient() as client:
        drawn = Drawn(args.seed, "narrow", limits, client)
        while len(settings) < args.count:
            setting = drawn.next()
            if setting.timesteps * setting.micro_batch_size > step_time.MOST_FRAMES:
                settings.append(setting)
    triples = [
        [step_time.probed(each, frames).to_json() for frames in (16, 64, 10**9)]
        for each in settings
    ]
    done = subprocess.run(
        child.command("revedge.planner.time_probe"),
        input=json.dumps({"pairs": triples, "seconds": 600}),
        capture_output=True,
        env=child.environment(**allocator.preload(), OMP_NUM_THREADS="1"),
        text=True,
        check=False,
    )
    rows, ratios, within = list[list[str]](), list[float](), 0
    for setting, line in zip(settings, done.stdout.splitlines(), strict=False):
        points = json.loads(line)
        if len(points) < 3:
            continue
        micro = dataclasses.replace(setting, batch_size=setting.micro_batch_size)
        found = step_time.followed(micro, [[n, cpu_s, cpu_s] for n, cpu_s, _ in points[:2]])
        real_s = points[2][1]
        within += found.least_s <= real_s <= found.most_s
        ratios.append(found.middle_s / real_s)
        values: dict[str, Any] = {"setting": setting.to_json(), "error": "-"}
        interval = f"{found.least_s:.3f} to {found.most_s:.3f}"
        rows.append([*words(values)[:6], interval, f"{real_s:.3f}", f"{ratios[-1]:.2f}"])
        print(*rows[-1], sep="  ", flush=True)
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
        report.write_figures(
            args.report, "Predicted and measured time of a training step", result, header, rows
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    main()
