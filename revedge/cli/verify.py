"""`revedge verify`: does saving memory change a number? Every strategy against plain autograd, each in a process."""

import argparse
import os
import tempfile
from typing import Any

from revedge.cli.output import emit, table
from revedge.cli.step_child import PLAIN, spawn
from revedge.errors import RevedgeError, UsageError
from revedge.units import format_bytes, parse_bytes

STRATEGIES = ("store", "keep-conv", "keep-spikes", "reverse")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model", required=True, help="name of a model, e.g. revsresnet21, or net.py:build"
    )
    parser.add_argument("--timesteps", type=int, default=4, help="time steps (default 4)")
    parser.add_argument("--batch", type=int, default=8, help="samples per step (default 8)")
    parser.add_argument("--in-shape", default="3,32,32", help="C,H,W of a frame (default 3,32,32)")
    parser.add_argument("--classes", type=int, default=10, help="number of classes (default 10)")
    parser.add_argument(
        "--neuron", default=None, help="if, lif, plif, or for VGG and ResNets reversible"
    )
    parser.add_argument(
        "--static", action="store_true", help="one image per sample instead of T frames"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
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


def parse_shape(text: str) -> list[int]:
    """Return (C, H, W) of ``"3,32,32"``.

    Raises:
        UsageError: it is not three positive numbers.
    """
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--in-shape {text!r} is not C,H,W; write three numbers, as in 2,34,34")
    return [int(part) for part in parts]


def at_least_one(flag: str, value: int) -> int:
    """Return ``value`` if it is 1 or more.

    Raises:
        UsageError: it is not.
    """
    if value < 1:
        raise UsageError(f"{flag} {value} is not a count; use 1 or more")
    return value
