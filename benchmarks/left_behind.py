"""What a training leaves in memory beside its tensors, by kind: why peaks lie above base and trace.

Run: python benchmarks/left_behind.py --rows ROWS.jsonl [--count 10] [--report FILE.md]
Takes configurations as prediction_floor.py does. In a process of its own each is trained for two steps and an
evaluation, as the planner rehearses them, behind the smallest network of its family, which is the base. Then all of it
is freed and the heap trimmed; what resident memory has grown by since the base is generated code (pages that can be
executed and belong to no file), heap (Python's objects, what oneDNN remembers of each convolution), other anonymous
pages (the arena's, threads'), and pages of libraries that had not been touched.
Prints a line per configuration and, as its last line, one JSON object.
"""

import argparse
import collections
import gc
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import report
from bench_prediction import words
from prediction_floor import MIB, chosen

from revedge import allocator, child
from revedge.planner.base import family_of
from revedge.planner.base_probe import TRAINER_MODULES, load, warm_up
from revedge.planner.setting import Setting

KINDS = ("code", "heap", "other", "files")
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ (\d+)\s*(.*)$")


def resident_by_kind() -> collections.Counter[str]:
    """Return resident bytes of this process by kind."""
    found: collections.Counter[str] = collections.Counter()
    kind = "other"
    with open("/proc/self/smaps", encoding="utf-8") as file:
        for line in file:
            mapping = _MAPPING.match(line)
            if mapping:
                rights, inode, name = mapping.groups()
                generated = "x" in rights and (inode == "0" or "memfd" in name)
                kind = "files" if name.startswith("/") else "other"
                kind = "heap" if name == "[heap]" else "code" if generated else kind
            elif line.startswith("Rss:"):
                found[kind] += int(line.split()[1]) * 1024
    return found


def rehearse(setting: Setting) -> dict[str, int]:
    """Train in this process; return what is left behind, by kind."""
    allocator.return_freed_memory()
    load(TRAINER_MODULES)
    from revedge.planner.step import Rehearsal

    warm_up(1, "cpu", family_of(setting.model), "blocked", setting.precision)
    gc.collect()
    allocator.trim()
    before = resident_by_kind()
    rehearsal = Rehearsal(setting, "cpu")
    rehearsal.train_step()
    rehearsal.train_step()
    rehearsal.evaluate()
    del rehearsal
    gc.collect()
    allocator.trim()
    after = resident_by_kind()
    return {kind: after[kind] - before[kind] for kind in KINDS}


def main() -> int:
    """Rehearse each in a process of its own."""
    parser = argparse.ArgumentParser(description="What trainings leave behind in memory.")
    parser.add_argument("--rows", type=Path, help="of bench_prediction.py")
    parser.add_argument("--count", type=int, default=10, help="configurations (10)")
    parser.add_argument("--report", type=Path, help="Markdown file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(rehearse(Setting.from_json(json.loads(args.one)))))
        return 0
    rows, totals = list[list[str]](), list[float]()
    for setting in chosen(args.rows, args.count):
        done = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(setting.to_json())],
            env=child.environment(OMP_NUM_THREADS="1", **allocator.preload()),
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        totals.append(sum(found.values()) / MIB)
        cells = [f"{found[kind] / MIB:.2f}" for kind in KINDS]
        rows.append([*words({"setting": setting.to_json(), "error": "-"})[:6], *cells])
        rows[-1].append(f"{totals[-1]:.2f}")
        print(*rows[-1], sep="  ", flush=True)
    result = {"least_mib": min(totals), "median_mib": statistics.median(totals)}
    result["most_mib"] = max(totals)
    if args.report is not None:
        header = ["model", "frames", "T", "batch/micro", "saved by", "optimizer"]
        header += [f"{kind}, MiB" for kind in KINDS] + ["together"]
        report.write_figures(
            args.report,
            "What trainings leave behind in memory beside their tensors",
            result,
            header,
            rows,
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
