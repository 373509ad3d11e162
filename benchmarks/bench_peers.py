"""revedge beside SpikingJelly: memory and time of one training step, the same nets, the same meter, fresh processes.

Run: python benchmarks/bench_peers.py [--rounds 3] [--nets iso,vgg11,ms_resnet18] [--report FILE.md]

The libraries are measured in turn, round after round; the least CPU seconds and the median bytes count. `smallest` and
`fastest` are chosen, by what was measured, among what `revedge bench` chooses among: strategies, whole and in slabs.
With --report the table goes into FILE.md and the picture into FILE.svg; what stands there under "## Notes" is kept. The
last line of stdout is one JSON object.
Exit code 1 if a bar is not met or, without SpikingJelly, not known.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peers.side_by_side import HINT, Row, has_spikingjelly, revedge, spikingjelly
from report import command_line, machine, markdown_table, write

from revedge.cli.bench_picture import check_possible, draw_in_child
from revedge.cli.bench_rows import best, mark_front, merge
from revedge.cli.output import table

TIMESTEPS = 8
BATCH = {"iso": 4, "vgg11": 8, "ms_resnet18": 8}
MODES = ("stored", "memopt")
MIB = 2.0**20
UPDATE = "--update-in-backward"


@dataclass(frozen=True, slots=True)
class Bar:
    """What one of our rows must be held under; ``times`` is in units of SpikingJelly's stored step, None: no limit."""

    net: str
    wanted: str
    anon_mib: float
    times: float | None
    update: bool = False

    def met_by(self, row: Row, stored: Row) -> bool:
        """Whether ``row`` is under the bar."""
        in_time = self.times is None or row["cpu_s"] <= self.times * stored["cpu_s"]
        return in_time and row["anon_peak_bytes"] <= self.anon_mib * MIB


BARS = (
    Bar("iso", "smallest", 16, 1.0),
    Bar("iso", "fastest", 70, 0.75),
    Bar("vgg11", "smallest", 80, 1.0),
    Bar("vgg11", "smallest", 50, None, update=True),
    Bar("vgg11", "fastest", 120, 0.8),
    Bar("ms_resnet18", "smallest", 130, 1.2),
    Bar("ms_resnet18", "fastest", 250, 0.9),
)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="revedge beside SpikingJelly.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", default=",".join(BATCH))
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    about = machine(("torch", "spikingjelly"))
    picture = None if args.report is None else check_possible(str(args.report.with_suffix(".svg")))
    with_peer = has_spikingjelly()
    if not with_peer:
        print(HINT)
    nets = [net for net in BATCH if net in args.nets.split(",")]
    rows = _measure(nets, args.rounds, with_peer=with_peer)
    bars = [_bar_row(bar, rows) for bar in BARS if bar.net in nets]
    header, body = _rows_table(rows)
    bar_header = tuple(bars[0])
    bar_body = [tuple(bar.values()) for bar in bars]
    print(table(header, body), table(bar_header, bar_body), sep="\n\n")
    if args.report is not None and picture is not None:
        draw_in_child(rows, picture)
        parts = [
            "anon: growth of anonymous memory from before the first step to its peak, gradients included. "
            f"Both libraries by `revedge/cli/step_meter.py`; {args.rounds} fresh processes per row, in turn; "
            "the least CPU seconds, the median bytes. T = 8, 1 thread. * : no other row of the library is as small "
            "and as fast.",
            markdown_table(header, body),
            f"![memory against time]({picture.name})",
            "## Bars",
            markdown_table(bar_header, bar_body),
        ]
        write(args.report, "revedge beside SpikingJelly", command_line(), about, parts)
        print(f"report: {args.report}, picture: {picture}")
    met = all(bar["met"] == "yes" for bar in bars)
    print(json.dumps({"met": met, "bars": bars, "rows": rows}))
    return 0 if met else 1


def _measure(nets: Sequence[str], rounds: int, *, with_peer: bool) -> list[Row]:
    found: dict[tuple[str, str, str], list[Row]] = {}
    update = True
    for turn in range(rounds):
        for net in nets:
            print(f"round {turn + 1} of {rounds}: {net}", file=sys.stderr, flush=True)
            fresh = []
            if with_peer:
                fresh += [spikingjelly(net, mode, TIMESTEPS, BATCH[net]) for mode in MODES]
            fresh += revedge(net, "all+slabs", TIMESTEPS, BATCH[net])
            if update and any(bar.update for bar in BARS if bar.net == net):
                try:
                    updated = revedge(net, "all+slabs", TIMESTEPS, BATCH[net], UPDATE)
                    fresh += [{**row, "strategy": f"{row['strategy']}+update"} for row in updated]
                except RuntimeError as error:
                    print(f"without {UPDATE}: {error}", file=sys.stderr)
                    update = False
            for row in fresh:
                found.setdefault((row["net"], row["library"], row["strategy"]), []).append(row)
    rows = [merge(each) for each in found.values()]
    for library in ("spikingjelly", "revedge"):
        mark_front([row for row in rows if row["library"] == library])
    return rows


def _of(rows: Sequence[Row], net: str, library: str) -> list[Row]:
    return [row for row in rows if row["net"] == net and row["library"] == library]


def _stored(rows: Sequence[Row], net: str) -> Row | None:
    return next(
        (row for row in _of(rows, net, "spikingjelly") if row["strategy"] == "stored"), None
    )


def _rows_table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    header = ("net", "library", "strategy", "", "anon MiB", "times less", "tracked MiB", "CPU s")
    header += ("of stored time", "loss", "gradient sha1")
    body = []
    for row in rows:
        stored = _stored(rows, row["net"])
        less = f"{stored['anon_peak_bytes'] / row['anon_peak_bytes']:.1f}" if stored else "-"
        share = f"{row['cpu_s'] / stored['cpu_s']:.2f}" if stored else "-"
        body.append(
            (
                f"{row['net']}, N = {row['batch']}",
                row["library"],
                row["strategy"],
                "*" if row["pareto"] else "",
                f"{row['anon_peak_bytes'] / MIB:.1f}",
                less,
                f"{row['tracked_peak_bytes'] / MIB:.1f}",
                f"{row['cpu_s']:.3f}",
                share,
                f"{row['loss']:.6f}",
                row.get("gradient_sha1", "-")[:8],
            )
        )
    return header, body


def _bar_row(bar: Bar, rows: Sequence[Row]) -> dict[str, str]:
    """What the bar asks, what our row is, and whether any other of our rows would meet it."""
    stored = _stored(rows, bar.net)
    own = [
        row
        for row in _of(rows, bar.net, "revedge")
        if row["strategy"].endswith("+update") == bar.update
    ]
    limit = "" if bar.times is None else f" at <= {bar.times:.2f}x"
    asked = {
        "net": bar.net,
        "wanted": bar.wanted + (" with update in backward" if bar.update else ""),
        "bar": f"<= {bar.anon_mib:.0f} MiB{limit}",
    }
    if not own or stored is None:
        why = "not available" if not own else "no SpikingJelly"
        return {**asked, "strategy": "-", "is": why, "met": "unknown", "met by": "-"}
    chosen = best(own, bar.wanted)
    return {
        **asked,
        "strategy": chosen["strategy"],
        "is": f"{chosen['anon_peak_bytes'] / MIB:.1f} MiB at {chosen['cpu_s'] / stored['cpu_s']:.2f}x",
        "met": "yes" if bar.met_by(chosen, stored) else "NO",
        "met by": ", ".join(row["strategy"] for row in own if bar.met_by(row, stored)) or "none",
    }


if __name__ == "__main__":
    raise SystemExit(main())
