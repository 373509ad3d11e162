"""`revedge bench`: memory and time of one training step, each strategy in a fresh process."""

import argparse
from typing import Any

from revedge.cli.output import emit, table
from revedge.cli.step_child import PLAIN, spawn
from revedge.cli.verify import at_least_one, parse_shape
from revedge.errors import RevedgeError, UsageError
from revedge.units import format_bytes

# The nets that other libraries are measured on too; 32x32 images, LIF with tau 2, ATan surrogate, reset detached.
_NAMED: dict[str, dict[str, Any]] = {
    "iso": {"name": "vgg-iso10", "neuron": "lif"},
    "vgg11": {"name": "vgg11", "neuron": "lif"},
    "ms_resnet18": {"name": "ms-resnet18", "neuron": "lif"},
}
_STRATEGIES = ("store", "keep-conv", "keep-spikes", "reverse")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--net",
        required=True,
        help=f"{', '.join(_NAMED)} (static images, 3x32x32) or the name of a model",
    )
    parser.add_argument(
        "--strategy",
        default="all",
        help=f"{', '.join(_STRATEGIES)}, invert, plain, smallest, fastest or all (default)",
    )
    parser.add_argument("--timesteps", type=int, default=8, help="time steps (default 8)")
    parser.add_argument("--batch", type=int, default=8, help="samples per step (default 8)")
    parser.add_argument("--in-shape", default="3,32,32", help="C,H,W of a frame (default 3,32,32)")
    parser.add_argument("--classes", type=int, default=10, help="number of classes (default 10)")
    parser.add_argument("--neuron", default=None, help="if, lif, plif, or for VGG reversible")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed steps, the least counts (default 3)"
    )
    parser.epilog = (
        "example:\n  revedge bench --net ms_resnet18 --strategy all --timesteps 8 --batch 8\n\n"
        "anon is the growth of the process's anonymous memory from before the first step to its peak."
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    named = args.net in _NAMED
    model = {
        **(_NAMED[args.net] if named else {"name": args.net}),
        "in_shape": parse_shape(args.in_shape),
        "num_classes": args.classes,
        "timesteps": at_least_one("--timesteps", args.timesteps),
        "static": named,
        **({} if args.neuron is None else {"neuron": args.neuron}),
    }
    job = {
        "model": model,
        "batch": at_least_one("--batch", args.batch),
        "threads": at_least_one("--threads", args.threads),
        "repeats": at_least_one("--repeats", args.repeats),
        "track": True,
    }
    rows = []
    for strategy in _chosen(args.strategy):
        row = spawn({**job, "strategy": strategy})
        if "error" in row:
            raise RevedgeError(
                f"{args.net} with strategy {strategy} could not be run: {row['error']}"
            )
        rows.append({"net": args.net, **row})
    if args.strategy in ("smallest", "fastest"):
        key = "anon_peak_bytes" if args.strategy == "smallest" else "cpu_s"
        rows = [min(rows, key=lambda row: row[key])]
    emit(
        args,
        _text(rows),
        {"net": args.net, "timesteps": args.timesteps, "batch": args.batch, "rows": rows},
    )
    return 0


def _chosen(strategy: str) -> tuple[str, ...]:
    if strategy in ("all", "smallest", "fastest"):
        return _STRATEGIES
    if strategy not in (*_STRATEGIES, "invert", PLAIN):
        raise UsageError(
            f"--strategy {strategy!r} is not known; choose {', '.join(_STRATEGIES)}, invert, plain, "
            "smallest, fastest or all"
        )
    return (strategy,)


def _text(rows: list[dict[str, Any]]) -> str:
    header = ("net", "strategy", "anon", "tracked", "CPU s", "loss", "gradient sha1")
    body = [
        (
            row["net"],
            row["strategy"],
            format_bytes(row["anon_peak_bytes"]),
            format_bytes(row["tracked_peak_bytes"]),
            f"{row['cpu_s']:.3f}",
            f"{row['loss']:.6f}",
            row["gradient_sha1"][:12],
        )
        for row in rows
    ]
    return table(header, body)
