"""`revedge bench`: memory and time of one training step, each strategy in a fresh process."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revedge.cli.bench_picture import check_possible, draw_in_child
from revedge.cli.bench_rows import (
    BEST,
    CHOICE,
    NAMED,
    SLABS,
    SPELLING,
    STRATEGIES,
    UNTRIED,
    Case,
    Progress,
    Row,
    best,
    groups,
    measure,
    strategies_of,
)
from revedge.cli.net_options import add_net_options, at_least_one, parse_shape
from revedge.cli.output import emit, table
from revedge.cli.step_child import PLAIN
from revedge.errors import RevedgeError, UsageError
from revedge.units import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        "--net",
        metavar="NAME",
        required=True,
        help=f"{', '.join(NAMED)} (static images, 3x32x32) or names of models; several with commas",
    )
    add(
        "--strategy",
        metavar="NAME",
        default="all",
        help=f"{', '.join(STRATEGIES)}, invert, plain, each maybe with {SPELLING} "
        "(several with commas), "
        f"smallest, fastest, all{SLABS} or all (default)",
    )
    add(
        "--timesteps",
        metavar="T",
        default="8",
        help="time steps, or several: 4,8 (default: %(default)s)",
    )
    add(
        "--batch",
        metavar="B",
        default="8",
        help="samples per step, or several (default: %(default)s)",
    )
    add_net_options(parser)
    add("--depth", metavar="N", type=int, help="number of blocks (staged nets)")
    add("--width", metavar="N", type=int, help="channels of the first stage")
    add(
        "--repeats",
        metavar="N",
        type=int,
        default=3,
        help="timed steps, the least counts (default: %(default)s)",
    )
    add(
        "--rounds",
        metavar="N",
        type=int,
        default=1,
        help="processes per row: least time, median of bytes (default: %(default)s)",
    )
    add(
        "--update-in-backward",
        action="store_true",
        help="step each parameter as soon as its gradient is there, and free the gradient",
    )
    add("--picture", metavar="FILE.svg", help="draw memory against time")
    parser.epilog = (
        "examples:\n  revedge bench --net ms_resnet18 --strategy all --timesteps 8 --batch 8\n"
        "  revedge bench --net iso,vgg11 --timesteps 4,8 --batch 4 --picture bench.svg\n\n"
        "anon is the growth of the process's anonymous memory from before the first step to its peak.\n"
        "a * marks what no other row beats in both bytes and time.\n"
        f"smallest and fastest choose, by what was measured, among\n{CHOICE};\n{UNTRIED}."
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if a row could not be measured."""
    picture = None if args.picture is None else check_possible(args.picture)
    cases = cases_of(args)
    strategies = strategies_of(args.strategy, reversible=args.neuron == "reversible")
    if args.update_in_backward and PLAIN in strategies:
        raise UsageError("--update-in-backward needs the engine, which strategy plain goes without")
    progress = Progress()
    try:
        rows, failed = measure(
            cases, strategies, rounds=at_least_one("--rounds", args.rounds), started=progress
        )
    finally:
        progress.close()
    if not rows:
        first = failed[0]
        raise RevedgeError(
            f"{first['net']} with strategy {first['strategy']} could not be run: {first['error']}"
        )
    if picture is not None:
        draw_in_child(rows, picture)
    shown = (
        [best(group, args.strategy) for group in groups(rows)] if args.strategy in BEST else rows
    )
    payload = {
        "threads": args.threads,
        "rows": shown,
        "failed": failed,
        "picture": args.picture,
    }
    emit(args, _text(shown, failed, picture), payload)
    return 1 if failed else 0


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Return every net with every T and batch.

    Raises:
        UsageError: something is not a count, or not a list of counts.
    """
    shape = parse_shape(args.in_shape)
    options = {key: getattr(args, key) for key in ("neuron", "depth", "width")}
    given = {key: value for key, value in options.items() if value is not None}
    job = {
        "threads": at_least_one("--threads", args.threads),
        "repeats": at_least_one("--repeats", args.repeats),
        "update_in_backward": args.update_in_backward,
        "track": True,
    }
    cases = []
    for net in dict.fromkeys(name.strip() for name in args.net.split(",")):
        for timesteps in counts("--timesteps", args.timesteps):
            model = {
                **NAMED.get(net, {"name": net}),
                "in_shape": shape,
                "num_classes": args.classes,
                "timesteps": timesteps,
                "static": args.static or net in NAMED,
                **given,
            }
            for batch in counts("--batch", args.batch):
                full = {**job, "model": model, "batch": batch}
                cases.append(Case(net=net, timesteps=timesteps, batch=batch, job=full))
    return cases


def counts(flag: str, text: str) -> list[int]:
    """Return the numbers of ``"4,8"``.

    Raises:
        UsageError: one of them is not a number of 1 or more.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise UsageError(f"{flag} {text!r} is not a count, nor a list of counts as in 4,8")
    return [at_least_one(flag, int(word)) for word in dict.fromkeys(words)]


def _text(rows: Sequence[Row], failed: Sequence[Row], picture: Path | None) -> str:
    header = (
        "net",
        "T",
        "batch",
        "strategy",
        "",
        "anon",
        "tracked",
        "CPU s",
        "loss",
        "gradient sha1",
    )
    body: list[tuple[Any, ...]] = [
        (
            row["net"],
            row["timesteps"],
            row["batch"],
            row["strategy"],
            "*" if row["pareto"] else "",
            format_bytes(row["anon_peak_bytes"]),
            format_bytes(row["tracked_peak_bytes"]),
            f"{row['cpu_s']:.3f}",
            f"{row['loss']:.6f}",
            row["gradient_sha1"][:12],
        )
        for row in rows
    ]
    lines = [table(header, body)]
    lines += [
        f"{row['net']} T={row['timesteps']} batch {row['batch']} {row['strategy']} failed: {row['error']}"
        for row in failed
    ]
    if picture is not None:
        lines.append(f"picture: {picture}")
    return "\n".join(lines)
