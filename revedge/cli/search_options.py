"""What `revedge plan` and `revedge train` let the user fix, give a range, or leave to the planner."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from revedge.errors import UsageError
from revedge.units import parse_bytes
from revedge.user_code import absolute, is_user_model

# As attributes of the parsed arguments. What is not given is None.
NAMES = (
    "model", "depth", "width", "neuron", "option", "timesteps", "batch", "micro_batch", "strategy", "slab", "spans",
    "membranes", "chunk", "update_in_backward", "precision", "optimizer", "prefer", "runs", "threads",
)  # fmt: skip
_RANGES = ("depth", "timesteps", "width")
_COUNTS = ("batch", "micro_batch", "membranes", "threads")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add which data."""
    parser.add_argument("--data", metavar="NAME", help="digits, nmnist, dvsgesture, npz or folder")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where the recordings lie (digits needs none)"
    )


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add what a search is told; absent ones are None."""
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME",
        help="a model, a family to choose from, or a function of your own as net.py:build or module:function (its "
        "code is run); default: one for the data",
    )
    add("--depth", metavar="N", help="blocks of the model, or a range, 8..64")
    add("--width", metavar="N", help="channels of the model's first stage, or a range, 16..64")
    add("--neuron", metavar="NAME", help="if, lif, plif, or for VGG and ResNets reversible")
    add(
        "--option",
        action="append",
        metavar="NAME=VALUE",
        help="a further argument of a function of your own; may be repeated",
    )
    add(
        "--timesteps",
        metavar="T",
        help="time steps, or a range, 4..16; free with --prefer timesteps",
    )
    add("--batch", type=int, metavar="B", help="samples per optimizer step")
    add(
        "--micro-batch",
        type=int,
        metavar="B",
        help="samples per forward and backward; default: chosen",
    )
    add(
        "--strategy",
        metavar="NAME",
        help="store, keep-conv, keep-spikes, reverse or invert; default: chosen",
    )
    add(
        "--slab",
        metavar="SIZE",
        help="make tensors between units in slabs of channels of SIZE, as 8MiB, or none; default: chosen",
    )
    add(
        "--spans",
        metavar="N",
        help="go backward through residual and reversible blocks in N spans of time, or none; default: chosen",
    )
    add(
        "--membranes",
        type=int,
        metavar="N",
        help="with --spans: keep N membranes of a neuron between spans, make the others again; default: one per span",
    )
    add(
        "--chunk",
        metavar="SIZE",
        help="let convolutions read SIZE of spikes at once, as 512KiB; spans are no shorter (default: 2MiB)",
    )
    add(
        "--update-in-backward",
        nargs="?",
        const="yes",
        choices=("yes", "no"),
        help="update weights and free gradients during the backward pass; default: chosen",
    )
    add(
        "--precision",
        metavar="NAME",
        help="of convolutions in training: float32 (default), bfloat16, or auto (bfloat16 where a step is measured to "
        "be faster)",
    )
    add("--optimizer", metavar="NAME", help="adamw, sgd, or any (sgd where only that fits)")
    add(
        "--prefer",
        metavar="WHAT",
        help="what to make large: depth, timesteps, speed or accuracy-per-byte",
    )
    add(
        "--runs",
        nargs="+",
        metavar="DIR",
        help="finished trainings of these data, for --prefer accuracy-per-byte to choose among",
    )
    add("--threads", type=int, metavar="N", help="CPU threads of the training")


def refuse_beside_plan(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse what a plan file says already.

    Raises:
        UsageError: one of ``names`` was given.
    """
    given = [name for name in names if getattr(args, name) not in (None, False)]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise UsageError(
            f"{option} does not go with --plan, which says it already; leave one of them out"
        )


def wishes(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for, as plain values for `revedge.planner.request.Request.of`.

    Raises:
        UsageError: a number that cannot be, or a folder of ``--runs`` that is no finished training of these data.
    """
    ranges, fixed = dict[str, tuple[int, int]](), dict[str, int]()
    for name in _RANGES:
        low, high = _range(name, getattr(args, name))
        if low is not None and high is not None:
            ranges[name] = low, high
        elif low is not None:
            fixed[name] = low
    for name in _COUNTS:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} is not possible; give 1 or more")
    options = {name: fixed.get(name) for name in ("width", "depth")} | {"neuron": args.neuron}
    if args.option and not is_user_model(args.model or ""):
        raise UsageError(
            f"--option {args.option[0]} is for a --model of your own, as net.py:build; leave it out"
        )
    options |= dict(map(_option, args.option or []))
    slab = args.slab
    if slab is not None:
        slab = 0 if slab.strip().lower() == "none" else parse_bytes(slab)
    update = args.update_in_backward
    return {
        "model": None if args.model is None else absolute(args.model),
        "model_options": {name: value for name, value in options.items() if value is not None},
        "timesteps": fixed.get("timesteps"),
        "ranges": ranges,
        "runs": [_known_run(folder, args.data) for folder in args.runs or []],
        "batch_size": args.batch,
        "micro_batch_size": args.micro_batch,
        "strategy": args.strategy,
        "slab_bytes": slab,
        "span_count": _spans(args.spans),
        "membrane_count": args.membranes,
        "chunk_bytes": None if args.chunk is None else parse_bytes(args.chunk),
        "update_in_backward": None if update is None else update == "yes",
        "precision": args.precision,
        "optimizer": args.optimizer,
        "prefer": args.prefer,
        "threads": _threads(args),
    }


def _threads(args: argparse.Namespace) -> int:
    """Return how many threads train: on this machine no more than it has cores, which would only make it slow."""
    cores = os.cpu_count()
    elsewhere = args.device not in (None, "cpu", "cuda")  # on a board
    if args.threads is not None and cores is not None and args.threads > cores and not elsewhere:
        raise UsageError(
            f"--threads {args.threads} is more than this machine has cores; give at most {cores}"
        )
    return args.threads or len(os.sched_getaffinity(0))


def _option(text: str) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE: a number, true, false, or words."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value:
        raise UsageError(f"--option {text!r} is not understood; give NAME=VALUE, as in blocks=3")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def _spans(text: str | None) -> int | None:
    """Return the number of spans, 0 for "none", None where nothing was given."""
    if text is None or text.strip().lower() == "none":
        return None if text is None else 0
    if not (text.isdecimal() and int(text)):
        raise UsageError(f"--spans {text!r} is no number of spans; give 1 or more, or none")
    return int(text)


def _range(name: str, text: str | None) -> tuple[int | None, int | None]:
    """Return (number, None), or both ends of a range, or (None, None) where nothing was given."""
    if text is None:
        return None, None
    low, dots, high = text.partition("..")
    try:
        found = int(low), int(high) if dots else None
    except ValueError:
        raise UsageError(
            f"--{name} {text!r} is not understood; give a number, or a range as 4..16"
        ) from None
    if found[0] < 1:
        raise UsageError(f"--{name} {text} is not possible; give 1 or more")
    return found


def _known_run(folder: str, data: str | None) -> dict[str, Any]:
    """Return what a finished training of ``data`` reached: fields of `revedge.planner.request.KnownRun`."""
    from revedge.devices.run_folder import RunFolder
    from revedge.planner.plan import Plan

    run = RunFolder(folder)
    run.require_begun("--runs")
    plan, result = Plan.load(run.plan), run.read_result()
    if result is None:
        raise UsageError(
            f"--runs {folder}: this training is not finished; leave it out, or resume it"
        )
    if plan.data != data:
        raise UsageError(
            f"--runs {folder}: it was trained on {plan.data}, not on {data or 'frames of a given shape'}; leave it out"
        )
    return {
        "model": plan.model,
        "model_options": dict(plan.model_options),
        "timesteps": plan.timesteps,
        "accuracy": float(result["test_accuracy"]),
    }
