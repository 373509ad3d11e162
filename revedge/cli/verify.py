"""`revedge verify`: does saving memory change a number? Every strategy against plain autograd, each in a process."""

import argparse
import os
import tempfile
from typing import Any

from revedge.cli.net_options import add_net_options, at_least_one, parse_shape
from revedge.cli.output import emit, table
from revedge.cli.step_child import PLAIN, spawn
from revedge.errors import RevedgeError, UsageError
from revedge.units import format_bytes, parse_bytes

STRATEGIES = ("store", "keep-conv", "keep-spikes", "reverse")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        required=True,
        help="name of a model, e.g. revsresnet21, or net.py:build",
    )
    parser.add_argument(
        "--timesteps", metavar="T", type=int, default=4, help="time steps (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", metavar="B", type=int, default=8, help="samples per step (default: %(default)s)"
    )
    add_net_options(parser)
    parser.add_argument(
        "--slab",
        metavar="SIZE",
        help="make tensors between units in slabs of channels of SIZE, as 1MiB (default: whole)",
    )
    parser.add_argument(
        "--spans",
        type=int,
        metavar="N",
        help="go backward through blocks in N spans of time (default: over all time at once)",
    )
    parser.add_argument(
        "--membranes",
        type=int,
        metavar="N",
        help="with --spans: keep N membranes of a neuron between spans (default: one per span)",
    )
    parser.add_argument(
        "--chunk",
        metavar="SIZE",
        help="let convolutions read SIZE of spikes at once, as 512KiB (default: 2MiB)",
    )
    parser.epilog = (
        "example:\n  revedge verify --model revsresnet21 --timesteps 4 --batch 8\n\n"
        "The first row is plain PyTorch autograd over the reference operators. `identical` compares the\n"
        "SHA-256 of all gradients and running statistics with those of `store`; exit code 1 if they differ."
    )


def run(args: argparse.Namespace) -> int:
    """Run every strategy once and compare."""
    model = {
        "name": args.model,
        "in_shape": parse_shape(args.in_shape),
        "num_classes": args.classes,
        "timesteps": at_least_one("--timesteps", args.timesteps),
        "static": args.static,
    }
    if args.neuron is not None:
        model["neuron"] = args.neuron
    job = {
        "model": model,
        "batch": at_least_one("--batch", args.batch),
        "threads": at_least_one("--threads", args.threads),
        "repeats": 1,
        "check": "checksum",
        "slab_bytes": None if args.slab is None else parse_bytes(args.slab),
        "span_count": None if args.spans is None else at_least_one("--spans", args.spans),
        "membrane_count": _membranes(args),
        "chunk_bytes": None if args.chunk is None else parse_bytes(args.chunk),
    }
    strategies = (*STRATEGIES, "invert") if args.neuron == "reversible" else STRATEGIES
    rows = _rows(job, strategies)
    good = all(row["identical"] for row in rows[1:])
    payload = {
        "model": args.model,
        "timesteps": args.timesteps,
        "batch": args.batch,
        "identical": good,
        "rows": rows,
    }
    emit(args, _text(rows, good), payload)
    return 0 if good else 1


def _membranes(args: argparse.Namespace) -> int | None:
    if args.membranes is not None and args.spans is None:
        raise UsageError(
            f"--membranes {args.membranes} are those of spans of time; give --spans, too, as in --spans 16"
        )
    return None if args.membranes is None else at_least_one("--membranes", args.membranes)


def _rows(job: dict[str, Any], strategies: tuple[str, ...]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="revedge-verify-") as folder:
        path = os.path.join(folder, "plain.npz")
        rows = [spawn({**job, "strategy": PLAIN, "gradients": path})]
        if "error" not in rows[0]:
            rows += [spawn({**job, "strategy": name, "reference": path}) for name in strategies]
    for row in rows:
        if "error" in row:
            raise RevedgeError(f"strategy {row['strategy']} could not be run: {row['error']}")
    store = rows[1]
    for row in rows:
        row["identical"] = all(
            row[key] == store[key] for key in ("gradient_sha256", "statistics_sha256")
        )
    rows[0]["max_relative_error"] = 0.0
    return rows


def _text(rows: list[dict[str, Any]], good: bool) -> str:
    header = (
        "strategy",
        "identical to store",
        "error against plain",
        "peak",
        "above start",
        "CPU s",
    )
    body = [
        (
            row["strategy"],
            "-" if row["strategy"] == PLAIN else ("yes" if row["identical"] else "NO"),
            f"{row['max_relative_error']:.1e}",
            format_bytes(row["peak_bytes"]),
            format_bytes(row["anon_peak_bytes"]),
            f"{row['cpu_s']:.3f}",
        )
        for row in rows
    ]
    wrong = "NOT identical: this is an error of revedge, please report."
    verdict = "Saving memory changes no number." if good else wrong
    return f"{table(header, body)}\n{verdict}"
