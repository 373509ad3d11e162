"""Memory against time of the rows of a benchmark, as SVG. Drawn in a child: matplotlib never meets what is measured.

`python -m revedge.cli.bench_picture FILE.svg < rows.json`
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revedge import child
from revedge.errors import RevedgeError, UsageError

_TIMEOUT_S = 120.0
_COLUMNS = 3
_MIB = 2.0**20
_LOOKS = {"revedge": ("tab:blue", "o"), "spikingjelly": ("tab:red", "s")}


def check_possible(path: str) -> Path:
    """Return the path of a picture that can be drawn, before hours are spent on measuring what it shows.

    Raises:
        UsageError: another ending than .svg, no such folder, or no matplotlib.
    """
    found = Path(path)
    if found.suffix != ".svg":
        raise UsageError(f"--picture {path}: only SVG is drawn; give a name that ends in .svg")
    if not found.parent.is_dir():
        raise UsageError(f"--picture {path}: there is no folder {found.parent}; make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "--picture needs matplotlib; install it with: pip install 'revedge[report]'"
        )
    return found


def draw_in_child(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw ``rows`` of `revedge.cli.bench_rows.measure` into ``path``; a key library tells whose they are.

    Raises:
        RevedgeError: it could not be drawn.
    """
    done = subprocess.run(
        child.command("revedge.cli.bench_picture", str(path)),
        env=child.environment(),
        input=json.dumps(list(rows)),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RevedgeError(f"{path}: the picture could not be drawn ({last[:200]})")


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per net, T and batch: a point per row, and the line that no row is below and left of."""
    import matplotlib

    matplotlib.use("Agg")
    # Text stays text, and the same rows give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "revedge"})
    from matplotlib import pyplot

    from revedge.cli.bench_rows import groups

    panels = groups(rows)
    columns = min(len(panels), _COLUMNS)
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(5 * columns, 4 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _panel(axis, panel)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="svg", metadata={"Date": None})
    temporary.replace(path)


def _panel(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    from matplotlib import ticker

    widest_s = max(row["cpu_s"] for row in rows)
    libraries = list(dict.fromkeys(row.get("library", "revedge") for row in rows))
    for library in libraries:
        color, marker = _LOOKS.get(library, ("tab:green", "^"))
        own = [row for row in rows if row.get("library", "revedge") == library]
        front = sorted(
            (row["cpu_s"], row["anon_peak_bytes"] / _MIB) for row in own if row["pareto"]
        )
        axis.step(*zip(*front, strict=True), where="post", color=color, alpha=0.4)
        x, y = [row["cpu_s"] for row in own], [row["anon_peak_bytes"] / _MIB for row in own]
        axis.plot(x, y, marker, color=color, label=library)
        for (left_s, size_mib), text in _labels(own, 0.05 * widest_s):
            axis.annotate(
                text, (left_s, size_mib), xytext=(5, 4), textcoords="offset points", fontsize=8
            )
    first = rows[0]
    axis.set_title(f"{first['net']}  T={first['timesteps']}  batch {first['batch']}")
    axis.set_xlabel("CPU time of a step [s]")
    axis.set_ylabel("anonymous memory [MiB]")
    axis.set_xlim(left=0, right=1.5 * widest_s)
    sizes = [row["anon_peak_bytes"] / _MIB for row in rows]
    if max(sizes) > 5 * min(sizes):
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(ticker.ScalarFormatter())
        axis.set_ylim(0.7 * min(sizes), 2 * max(sizes))
    else:
        axis.set_ylim(0, 1.2 * max(sizes))
    axis.grid(alpha=0.3)
    if len(libraries) > 1:
        axis.legend(loc="upper right")


def _labels(rows: Sequence[dict[str, Any]], near_s: float) -> list[tuple[tuple[float, float], str]]:
    """Places and texts; rows that lie on one another share one."""
    found: list[tuple[tuple[float, float], str]] = []
    for row in sorted(rows, key=lambda row: float(row["cpu_s"])):
        x, y = row["cpu_s"], row["anon_peak_bytes"] / _MIB
        for index, ((other_x, other_y), text) in enumerate(found):
            if x - other_x < near_s and abs(y - other_y) < 0.05 * y:
                found[index] = ((x, y), f"{text}, {row['strategy']}")
                break
        else:
            found.append(((x, y), row["strategy"]))
    return found


if __name__ == "__main__":
    draw(json.load(sys.stdin), Path(sys.argv[1]))
