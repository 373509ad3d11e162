"""Every benchmark once, at sizes that end within minutes; what each is for stands at the top of its file.

Run: python benchmarks/run_all.py [--only bench_neuron,bench_peers] [--limit-s 600]

A benchmark that misses a bar ends with 1; the others still run. Exit code 1 if any of them missed one, broke or ran
into the limit. Reports come from the single scripts, at their own sizes.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
# What runs, and with which arguments; bench_peers has a target of its own (make bench-peers).
SCRIPTS: dict[str, list[str]] = {
    "bench_neuron": [],
    "bench_reversible": ["--quick"],
    "bench_depth_time": ["--depths", "8,32", "--times", "4,16", "--rounds", "1"],
    "bench_cuda": [],
    "bench_export": ["--only", "speed,memory"],
    "bench_prediction": ["--widths", "narrow", "--count", "6", "--most-gmacs", "2"],
    "bench_precision": ["--seeds", "1", "--epochs", "1"],
    "bench_search": ["--count", "2"],
    "unit_time": ["--count", "2"],
    "bench_per_image": ["--batch", "4"],
    "bench_apply": ["--rounds", "1", "--side", "32"],
    "kill_resume": ["--trainer", "3", "--supervisor", "2"],
    "keeping_it": ["--pairs", "4"],
    "max_depth": ["--budgets", "400MiB", "--parts", "time"],
    "watch_cost": ["--epochs", "1"],
    "outside_peak": [
        *[sys.executable, "-m", "revedge.cli.main", "train", "--data", "digits"],
        *["--budget", "400MiB", "--epochs", "2", "--seed", "0", "--out", "{folder}/run"],
    ],
}
OF_THEIR_OWN = {"bench_peers"}
WORDS = {0: "done", 1: "missed a bar, or broke: see above"}


def main() -> int:
    """Run, and say at the end how each ended."""
    parser = argparse.ArgumentParser(description="Every benchmark once.")
    parser.add_argument("--only", default=",".join(SCRIPTS), help="names, with commas")
    parser.add_argument("--limit-s", type=float, default=600.0, help="seconds for each")
    args = parser.parse_args()
    ends: list[tuple[str, str]] = []
    good = True
    for name in args.only.split(","):
        began_s = time.monotonic()
        code = _run(name, args.limit_s)
        good = good and code == 0
        word = "over the limit" if code is None else WORDS.get(code, f"broke, exit code {code}")
        ends.append((name, f"{word}, {time.monotonic() - began_s:.0f} s"))
    print()
    for name, word in ends:
        print(f"{name:20} {word}")
    return 0 if good else 1


def _run(name: str, limit_s: float) -> int | None:
    """Return the exit code, None if it was stopped."""
    with tempfile.TemporaryDirectory(prefix="revedge-bench-") as folder:
        words = [word.replace("{folder}", folder) for word in SCRIPTS.get(name, [])]
        print(f"\n$ python benchmarks/{name}.py {' '.join(SCRIPTS.get(name, []))}", flush=True)
        # A session of its own, so that its children can be stopped with it.
        process = subprocess.Popen(
            [sys.executable, str(HERE / f"{name}.py"), *words], start_new_session=True
        )
        try:
            return process.wait(limit_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise


if __name__ == "__main__":
    raise SystemExit(main())
