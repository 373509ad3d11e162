"""Time of a training step: told from units, told from whole steps, and measured; random configurations.

Run: python benchmarks/unit_time.py [--count 12] [--seed 0] [--report FILE.md]
Draws configurations as bench_prediction.py does, with more than 64 frames in a micro-batch, so that the size that is
told is none that was probed. Units: each distinct block under its strategy at 16 and 64 frames, summed over the net.
Whole steps: the net itself at 16 and 64 frames. Both are compared with steps of the whole micro-batch, by the seconds
of their thread on a core, which other programs change little. Seconds of probing are those on the clock, with nothing
remembered. Prints a line per configuration and, as its last line, one JSON object.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import report
from bench_prediction import words
from drawn import Drawn, Limits

from revedge import allocator, child
from revedge.planner import step_time, unit_time
from revedge.planner.form.shape import net_of
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient


def half_width(setting: Setting) -> float:
    """Return by which factor an interval reaches to either side of what the line through two probes tells."""
    probe = step_time.followed(setting, [[step_time.MOST_FRAMES, 1.0, 1.0]])
    return math.sqrt(probe.most_s / probe.least_s)


def measured_s(setting: Setting) -> float:
    """Return the seconds of a core that a step of one micro-batch takes."""
    done = subprocess.run(
        child.command("revedge.planner.time_probe"),
        input=json.dumps({"pairs": [[setting.to_json()]], "seconds": 600}),
        capture_output=True,
        env=child.environment(**allocator.preload(), OMP_NUM_THREADS="1"),
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout)[0][1])


def main() -> int:
    """Draw, tell twice, measure, compare."""
    parser = argparse.ArgumentParser(description="Time of a step by units and by whole steps.")
    parser.add_argument("--count", type=int, default=12, help="configurations (12)")
    parser.add_argument("--seed", type=int, default=0, help="of the list (0)")
    parser.add_argument("--report", type=Path, help="Markdown file")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    limits, rows = Limits(multiplications=4e9, live_bytes=1 << 30), list[list[str]]()
    ratios: dict[str, list[float]] = {"units": [], "steps": []}
    probing: dict[str, list[float]] = {"units": [], "steps": []}
    within = {"units": 0, "steps": 0}
    with TraceClient() as client:
        drawn = Drawn(args.seed, "narrow", limits, client)
        while len(rows) < args.count:
            setting = drawn.next()
            setting = dataclasses.replace(setting, batch_size=setting.micro_batch_size)
            found = client.geometry(setting)
            if setting.timesteps * setting.micro_batch_size <= 64 or "not_covered" in found:
                continue
            real_s = measured_s(setting)
            cells: list[str] = []
            for name in ("units", "steps"):
                with tempfile.TemporaryDirectory(prefix="revedge-bench-") as cache:
                    os.environ["REVEDGE_CACHE"] = cache
                    began_s = time.perf_counter()
                    if name == "units":
                        told = unit_time.measure([(net_of(found), setting)], seconds=300)[0]
                    else:
                        told = step_time.measure([setting], seconds=300)[0]
                    probing[name].append(time.perf_counter() - began_s)
                    del os.environ["REVEDGE_CACHE"]
                if told is None:
                    cells += ["none", ""]
                    continue
                # The plan's interval reaches to the clock's seconds; here both ends are those of a core.
                middle_s = told.least_s * half_width(setting)
                ratios[name].append(middle_s / real_s)
                within[name] += told.least_s <= real_s <= middle_s * half_width(setting)
                cells.append(f"{told.least_s:.3f} to {middle_s * half_width(setting):.3f}")
                cells.append(f"{ratios[name][-1]:.2f}, {probing[name][-1]:.1f} s")
            values: dict[str, Any] = {"setting": setting.to_json(), "error": "-"}
            rows.append([*words(values)[:6], f"{real_s:.3f}", *cells])
            print(*rows[-1], sep="  ", flush=True)
    result: dict[str, Any] = {"configurations": len(rows)}
    for name, each in ratios.items():
        off = sorted(abs(math.log(ratio)) for ratio in each)
        result[f"{name}_within"] = within[name]
        result[f"{name}_median_factor_off"] = math.exp(statistics.median(off))
        result[f"{name}_largest_factor_off"] = math.exp(off[-1])
        result[f"{name}_median_probing_s"] = statistics.median(probing[name])
    if args.report is not None:
        header = ["model", "frames", "T", "batch/micro", "saved by", "optimizer", "measured s"]
        header += ["told by units, s", "middle / measured, probing"]
        header += ["told by whole steps, s", "middle / measured, probing"]
        report.write_figures(
            args.report,
            "Time of a training step from units and from whole steps",
            result,
            header,
            rows,
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    main()
