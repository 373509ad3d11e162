"""Memory of a training step per image, on the nets of the reversible papers, beside SpikingJelly's stored step.

Run: python benchmarks/bench_per_image.py [--batch 32] [--timesteps 4] [--pairs ms-resnet34,...] [--report FILE.md]

activations: most that storages sum to, without weights and gradients, by image.
process:     growth of anonymous memory from before the first step to its peak, and the weights, by image: the whole
             process but for its base (the interpreter and the libraries).
The baseline is SpikingJelly's stored step of the net that is not reversible; ours are that net unchanged and the
reversible one of the same paper, each under the strategy with the least memory of those that were measured.
The last line of stdout is one JSON object. Exit code 1 if a bar is missed or, without SpikingJelly, not known.
"""

import argparse
import json
import sys
from pathlib import Path

from peers.side_by_side import HINT, Row, has_spikingjelly, revedge, spikingjelly
from report import command_line, machine, markdown_table, write

from revedge.cli.bench_rows import best
from revedge.cli.output import table

# The peer's net; ours unchanged and reversible; what the paper claims for the reversible one (arXiv 2312.07922).
PAIRS = {
    "ms-resnet34": ("ms_resnet34", ("ms-resnet34", "revsresnet37"), "3.79"),
    "spikingformer-4-384": (
        "spikingformer-4-384",
        ("spikingformer-4-384", "revsformer-4-384"),
        "3.00",
    ),
}
STRATEGIES = "reverse,reverse+slabs=2MiB"
ACTIVATIONS_TIMES, PROCESS_TIMES = 10.0, 6.0  # the bars
MIB = 2.0**20


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Memory of a training step per image.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--strategy", default=STRATEGIES, help="what ours is measured under")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    about = machine(("torch", "spikingjelly"))
    with_peer = has_spikingjelly()
    if not with_peer:
        print(HINT)
    rows: list[tuple[str, ...]] = []
    verdicts: list[str] = []
    for name in args.pairs.split(","):
        peer_net, nets, claim = PAIRS[name]
        baseline = None
        if with_peer:
            _say(f"spikingjelly {peer_net}")
            baseline = spikingjelly(peer_net, "stored", args.timesteps, args.batch, repeats=1)
            rows.append((*_cells(baseline, baseline), "-", "-"))
        for net in nets:
            _say(f"revedge {net}")
            own = revedge(net, args.strategy, args.timesteps, args.batch, "--static", repeats=1)
            cells = _cells(best(own, "smallest"), baseline)
            verdicts.append(_verdict(best(own, "smallest"), baseline))
            rows.append((*cells, claim if net == nets[1] else "-", verdicts[-1]))
    header = ("net", "library", "strategy", "activations", "times less", "process", "times less")
    header += ("CPU s", "of baseline", "paper", "bar met")
    print(table(header, rows))
    if args.report is not None:
        parts = [
            f"MiB per image, batch {args.batch}, T = {args.timesteps}, 32 x 32 images, 1 thread. "
            "activations: most that storages sum to, without weights and gradients. process: growth of anonymous "
            "memory and the weights. CPU s: one timed step, not repeated. "
            f"Bar: activations {ACTIVATIONS_TIMES:.0f} times less, process {PROCESS_TIMES:.0f} times less.",
            markdown_table(header, rows),
        ]
        write(args.report, "Memory per image", command_line(), about, parts)
    met = all(verdict == "yes" for verdict in verdicts)
    print(json.dumps({"met": met, "rows": [dict(zip(_keys(), row, strict=True)) for row in rows]}))
    return 0 if met else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _keys() -> tuple[str, ...]:
    sizes = ("activations_mib", "activations_times", "process_mib", "process_times")
    return ("net", "library", "strategy", *sizes, "cpu_s", "cpu_times", "paper_times", "met")


def _per_image(row: Row) -> tuple[float, float]:
    """Activations and process, MiB per image."""
    process = row["anon_peak_bytes"] + row["weights_bytes"]
    return row["activation_peak_bytes"] / row["batch"] / MIB, process / row["batch"] / MIB


def _times(row: Row, baseline: Row) -> tuple[float, float]:
    (ours, ours_whole), (theirs, theirs_whole) = _per_image(row), _per_image(baseline)
    return theirs / ours, theirs_whole / ours_whole


def _cells(row: Row, baseline: Row | None) -> tuple[str, ...]:
    activations, process = _per_image(row)
    less = ("-", "-") if baseline is None else tuple(f"{x:.1f}" for x in _times(row, baseline))
    share = "-" if baseline is None else f"{row['cpu_s'] / baseline['cpu_s']:.2f}"
    sizes = (f"{activations:.2f}", less[0], f"{process:.2f}", less[1])
    return (row["net"], row["library"], row["strategy"], *sizes, f"{row['cpu_s']:.2f}", share)


def _verdict(row: Row, baseline: Row | None) -> str:
    if baseline is None:
        return "unknown"
    activations, process = _times(row, baseline)
    return "yes" if activations >= ACTIVATIONS_TIMES and process >= PROCESS_TIMES else "NO"


if __name__ == "__main__":
    raise SystemExit(main())
