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
    handles, names = axes.flat[0].get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(handles, names, loc="outside upper center", ncols=len(names))
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
        near = _labels([row for row in own if row["pareto"]], 0.15 * widest_s)
        for index, (place, text) in enumerate(near):
            shift = (5, -10 if index % 2 else 4)  # in turn, so that neighbors do not meet
            axis.annotate(text, place, xytext=shift, textcoords="offset points", fontsize=8)
    first = rows[0]
    axis.set_title(f"{first['net']}  T={first['timesteps']}  batch {first['batch']}")
    axis.set_xlabel("CPU time of a step [s]")
    axis.set_ylabel("anonymous memory [MiB]")
    axis.set_xlim(left=0, right=1.6 * widest_s)
    sizes = [row["anon_peak_bytes"] / _MIB for row in rows]
    if max(sizes) > 5 * min(sizes):
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(ticker.ScalarFormatter())
        axis.set_ylim(0.7 * min(sizes), 2 * max(sizes))
    else:
        axis.set_ylim(0, 1.2 * max(sizes))
    axis.grid(alpha=0.3)


def _labels(rows: Sequence[dict[str, Any]], near_s: float) -> list[tuple[tuple[float, float], str]]:
    """Places and texts of what is on the front; of rows that lie close together one is named."""
    found: list[list[dict[str, Any]]] = []
    for row in sorted(rows, key=lambda row: float(row["cpu_s"])):
        for near in found:
            first = near[0]
            share = row["anon_peak_bytes"] / first["anon_peak_bytes"]
            if row["cpu_s"] - first["cpu_s"] < near_s and 0.85 < share < 1.15:
                near.append(row)
                break
        else:
            found.append([row])
    return [
        (
            (near[0]["cpu_s"], near[0]["anon_peak_bytes"] / _MIB),
            near[0]["strategy"] + (f" and {len(near) - 1} more" if len(near) > 1 else ""),
        )
        for near in found
    ]


if __name__ == "__main__":
    draw(json.load(sys.stdin), Path(sys.argv[1]))
