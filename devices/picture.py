"""progress.png: accuracy and memory over time; report.html: the plan, and what happened, on one page.

A child process draws them after training, so matplotlib costs no budget.

`python -m revedge.devices.picture RUN_DIR BUDGET_BYTES`
"""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revedge import child
from revedge.devices.atomic import replace_text
from revedge.devices.metrics_log import read_metrics
from revedge.devices.run_folder import RunFolder
from revedge.planner.plan import Plan

_TIMEOUT_S = 120.0
_MISSING = 3


def draw_in_child(run_dir: Path, budget_bytes: int) -> str | None:
    """Draw the picture of a run; return None, or why there is none."""
    command = child.command("revedge.devices.picture", str(run_dir), str(budget_bytes))
    try:
        done = subprocess.run(
            command,
            env=child.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no picture was drawn ({error})"
    if done.returncode == _MISSING:
        return "no picture was drawn: matplotlib is not installed (pip install 'revedge[report]')"
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"no picture was drawn ({last[:200]})"
    return None


def draw(run_dir: Path, budget_bytes: int) -> None:
    """Draw accuracy and memory of metrics.jsonl into progress.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(run_dir / "metrics.jsonl")
    epochs = [line for line in lines if line.get("event") == "epoch"]
    memory = [line for line in lines if line.get("event") == "memory"]
    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for name, label in (("train_accuracy", "training"), ("test_accuracy", "test")):
        top.plot([e["time_s"] for e in epochs], [100 * e[name] for e in epochs], "o-", label=label)
    top.set_ylabel("accuracy [%]")
    top.legend()
    top.grid(alpha=0.3)
    mib = 2**20
    times_s = [m["time_s"] for m in memory]
    bottom.plot(times_s, [m["now_bytes"] / mib for m in memory], label="supervisor + trainer")
    bottom.plot(times_s, [m["peak_bytes"] / mib for m in memory], "--", label="peak so far")
    bottom.axhline(budget_bytes / mib, color="tab:red", label="budget")
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("resident memory [MiB]")
    bottom.set_xlabel("time [s]")
    bottom.legend()
    bottom.grid(alpha=0.3)
    temporary = run_dir / ".progress.tmp.png"
    figure.savefig(temporary, dpi=100)
    temporary.replace(run_dir / "progress.png")


def write_report(run_dir: Path) -> None:
    """Write report.html of a run that has ended."""
    from revedge.planner import explain, report
    from revedge.planner.step_time import StepTime

    run = RunFolder(run_dir)
    result = json.loads(run.result.read_text())
    lines = read_metrics(run.metrics)
    try:
        found = json.loads(run.planning.read_text())
    except (OSError, ValueError):  # the plan was given
        found = explain.payload_of_plan(Plan.load(run.plan))
    chosen = Plan.load(run.plan)  # after restarts it may be another than the one searched
    found |= {
        "config": explain.config(chosen),
        "budget_bytes": chosen.budget_bytes,
        "predicted_peak_bytes": chosen.predicted_peak_bytes,
    }
    happened: dict[str, Any] = {
        "result": result,
        "epochs": [line for line in lines if line.get("event") == "epoch"],
        "memory": [line for line in lines if line.get("event") == "memory"],
        "rungs": [line for line in lines if line.get("event") == "rung"],
    }
    pace = [line["steps_s"] for line in lines if line.get("event") == "pace"]
    if pace:  # the last one: after a restart a step may be another
        happened["step_time"] = (
            StepTime(least_s=0.0, most_s=math.inf, source="").corrected(pace[-1]).to_json()
        )
    replace_text(run.report, report.page(found, happened))


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one run folder's picture."""
    run_dir, budget = sys.argv[1:] if argv is None else argv
    try:
        draw(Path(run_dir), int(budget))
        if RunFolder(run_dir).read_result() is not None:
            write_report(Path(run_dir))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        return _MISSING
    return 0


if __name__ == "__main__":
    sys.exit(main())
