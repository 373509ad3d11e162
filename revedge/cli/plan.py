"""`revedge plan`: which training fits into a number of bytes, and why not a larger one."""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from revedge.errors import RevedgeError, UsageError
from revedge.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from revedge.planner.request import KnownRun, Request

_EPILOG = """examples:
  revedge plan --data digits --model revsresnet11 --budget 400MiB --verify --out plan.toml
  revedge plan --in-shape 3,32,32 --classes 10 --model ms-resnet18 --budget 1GiB --depth 8..64 --timesteps 4..16
  revedge plan --data nmnist --data-dir DIR --model revsresnet --budget auto --device raspberry-pi-4-2gb
"""
_RESERVE_BYTES, _RESERVE_SHARE = 128 * 10**6, 0.05
_BOARD_SHARE = 0.8  # of a board's RAM: what is left beside the system on one that runs nothing else


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `revedge plan`."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add(
        "--budget",
        required=True,
        metavar="SIZE",
        help="bytes for the whole training, as 400MiB, or auto",
    )
    add("--data", metavar="NAME", help="digits, nmnist, dvsgesture, npz or folder")
    add("--data-dir", metavar="DIR", help="where the recordings lie (digits needs none)")
    add("--in-shape", metavar="C,H,W", help="in place of --data: shape of a frame")
    add("--classes", type=int, metavar="K", help="with --in-shape: number of classes")
    add("--static", action="store_true", help="with --in-shape: images, not event frames")
    add(
        "--model",
        metavar="NAME",
        help="a model, or a family to choose from; default: one for the data",
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
    add_memory_options(parser)
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
    add("--width", metavar="N", help="channels of the model's first stage, or a range, 16..64")
    add("--depth", metavar="N", help="blocks of the model, or a range, 8..64")
    add("--neuron", metavar="NAME", help="if, lif, plif, or for VGG and ResNets reversible")
    add("--device", metavar="BOARD", help="plan for this board (see revedge devices list)")
    add(
        "--accelerator",
        choices=("cpu", "cuda"),
        default="cpu",
        help="train on the CPU (default), or on the GPU of the board or of this machine",
    )
    add("--threads", type=int, metavar="N", help="CPU threads of the training")
    add(
        "--no-times",
        action="store_true",
        help="do not measure how long a step takes (saves up to 12 s)",
    )
    add(
        "--verify",
        action="store_true",
        help="run two real steps and refuse a plan that was too low",
    )
    add(
        "--report",
        metavar="FILE",
        help="write an HTML page: parts, timeline, alternatives (needs matplotlib)",
    )
    add("--out", metavar="FILE", help="write the plan here, for revedge train --plan FILE")


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Add what `revedge plan` and `revedge train` let the user fix instead of the planner."""
    parser.add_argument(
        "--slab",
        metavar="SIZE",
        help="make tensors between units in slabs of channels of SIZE, as 8MiB, or none; default: chosen",
    )
    parser.add_argument(
        "--update-in-backward",
        nargs="?",
        const="yes",
        choices=("yes", "no"),
        help="update weights and free gradients during the backward pass; default: chosen",
    )
    parser.add_argument(
        "--optimizer", metavar="NAME", help="adamw, sgd, or any (sgd where only that fits)"
    )


def memory_wishes(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Request` that `add_memory_options` asks for."""
    slab = args.slab
    if slab is not None:
        slab = 0 if slab.strip().lower() == "none" else parse_bytes(slab)
    update = args.update_in_backward
    return {
        "slab_bytes": slab,
        "update_in_backward": None if update is None else update == "yes",
        "optimizer": args.optimizer,
    }


def run(args: argparse.Namespace) -> int:
    """Search, print, and return 0, or 1 where nothing fits or the plan does not hold."""
    from revedge.cli.output import emit
    from revedge.planner import explain
    from revedge.planner.choose import choose

    notes: list[str] = []
    request = _request(args, notes)
    progress = _Progress()
    here = args.device is None and not args.no_times  # steps of another board cannot be timed
    result = choose(request, progress, timeline=args.report is not None, times=here)
    progress.end()
    payload: dict[str, Any] = explain.payload(result, request.budget_bytes)
    if args.report is not None:
        _write_report(payload, args.report)
        payload["report"] = args.report
        del payload["timeline"]
    payload["notes"] = notes
    text = "\n".join([explain.text(result), *(f"note: {note}" for note in notes)]).strip()
    if args.device is not None:
        text += "\ntime of a step: unknown; measure it on the board with revedge plan --verify"
    if result.plan is None:
        emit(args, text, {**payload, "error": f"{result.reason}; {result.way_out}", "exit_code": 1})
        print(f"revedge: error: {result.reason}; {result.way_out}", file=sys.stderr)
        return 1
    plan, problem = result.plan, None
    if args.verify:
        from revedge.planner.verify import verify

        found = verify(plan)
        problem = found.problem
        ratio = found.measured_peak_bytes / plan.predicted_peak_bytes
        payload |= {"measured_peak_bytes": found.measured_peak_bytes, "step_s": found.step_s}
        text += f"\nmeasured peak {format_bytes(found.measured_peak_bytes)} ({100 * ratio:.1f} % of the prediction)"
        if found.step_s is not None and result.step_time is not None:
            corrected = result.step_time.corrected([found.step_s])
            payload["step_time"] = corrected.to_json()
            text += f"\n{explain.time_text(corrected)}"
    if problem is not None:
        emit(args, text, {**payload, "error": problem, "exit_code": 1})
        print(
            f"revedge: error: the plan does not hold: {problem}; give a larger --budget",
            file=sys.stderr,
        )
        return 1
    if args.out is not None:
        _save(plan, args.out)
        payload["out"] = args.out
        text += f"\n{args.out}"
    emit(args, text, payload)
    return 0


def _request(args: argparse.Namespace, notes: list[str]) -> "Request":
    from revedge.planner.request import Request

    ranges, fixed = dict[str, tuple[int, int]](), dict[str, int]()
    for name in ("depth", "timesteps", "width"):
        low, high = _range(name, getattr(args, name))
        if low is not None and high is not None:
            ranges[name] = low, high
        elif low is not None:
            fixed[name] = low
    for name in ("batch", "micro_batch", "threads", "classes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} is not possible; give 1 or more")
    budget_bytes = _budget_bytes(args, notes)
    options = {name: fixed.get(name) for name in ("width", "depth")} | {"neuron": args.neuron}
    data = _data(args)
    return Request(
        budget_bytes=budget_bytes,
        **data,
        model=args.model,
        model_options={name: value for name, value in options.items() if value is not None},
        timesteps=fixed.get("timesteps"),
        ranges=ranges,
        runs=tuple(_known_run(folder, data["data"]) for folder in args.runs or []),
        batch_size=args.batch,
        micro_batch_size=args.micro_batch,
        strategy=args.strategy,
        **memory_wishes(args),
        prefer=args.prefer,
        device=args.accelerator,
        context_bytes=_context_bytes(args, notes),
        threads=args.threads or len(os.sched_getaffinity(0)),
    )


def _context_bytes(args: argparse.Namespace, notes: list[str]) -> int | None:
    """What CUDA takes on a board that is not this machine; None where it is measured or not used."""
    if args.device is None or args.accelerator == "cpu":
        return None
    from revedge.devices import boards
    from revedge.planner.base import context_prior_bytes

    board = boards.load(args.device)
    if board.compute_capability in (None, "none"):
        raise UsageError(f"board {board.name} has no GPU for CUDA; leave out --accelerator cuda")
    found = context_prior_bytes(str(board.compute_capability))
    notes.append(
        f"{format_bytes(found)} are taken for driver and libraries of CUDA: an upper estimate, measured on no board"
    )
    return found


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


def _known_run(folder: str, data: str) -> "KnownRun":
    """Return what a finished training of ``data`` reached."""
    from revedge.devices.run_folder import RunFolder
    from revedge.planner.plan import Plan
    from revedge.planner.request import KnownRun

    run = RunFolder(folder)
    run.require_begun()
    plan, result = Plan.load(run.plan), run.read_result()
    if result is None:
        raise UsageError(
            f"--runs {folder}: this training is not finished; leave it out, or resume it"
        )
    if plan.data != data:
        raise UsageError(
            f"--runs {folder}: it was trained on {plan.data}, not on {data}; leave it out"
        )
    return KnownRun(
        model=plan.model,
        model_options=plan.model_options,
        timesteps=plan.timesteps,
        accuracy=float(result["test_accuracy"]),
    )


def _data(args: argparse.Namespace) -> dict[str, Any]:
    """Name and shape of the data: of a data set, or as given."""
    if (args.data is None) == (args.in_shape is None):
        raise UsageError("give either --data, or --in-shape with --classes")
    if args.data is None:
        if args.classes is None:
            raise UsageError("--classes is missing; --in-shape needs it, as in --classes 10")
        shape = _shape(args.in_shape)
        return {
            "data": "random",
            "in_shape": shape,
            "num_classes": args.classes,
            "static": args.static,
        }
    if args.classes is not None or args.static:
        raise UsageError("--classes and --static go with --in-shape; --data knows them")
    from revedge.data import describe

    info = describe(args.data, args.data_dir)
    return {
        "data": args.data,
        "data_dir": None if args.data_dir is None else os.path.abspath(args.data_dir),
        "in_shape": info.in_shape,
        "num_classes": info.num_classes,
        "static": info.static,
    }


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(word) for word in text.split(","))
    except ValueError:
        channels = height = width = 0
    if min(channels, height, width) < 1:
        raise UsageError(f"--in-shape {text!r} is not channels,height,width; write it as 2,34,34")
    return channels, height, width


def _budget_bytes(args: argparse.Namespace, notes: list[str]) -> int:
    """The budget; of a board it is checked against its RAM."""
    from revedge.devices import meter

    auto = args.budget.strip().lower() == "auto"
    budget = None if auto else parse_bytes(args.budget)
    ram, free = meter.total_bytes(), meter.available_bytes()
    if args.device is not None:
        from revedge.devices import boards

        board = boards.load(args.device)
        if board.largest_budget_bytes is None and auto:
            raise UsageError(f"the RAM of board {board.name} is not known; give --budget as a size")
        ram = board.largest_budget_bytes or (budget or 0)
        free = int(ram * _BOARD_SHARE)
        notes.append(
            f"planned for {board.title} ({format_bytes(ram)}), with the base of torch as measured on "
            "this machine; verify on the board with revedge plan --verify"
        )
    reserve = max(_RESERVE_BYTES, int(ram * _RESERVE_SHARE))
    if budget is None:
        if free - reserve <= 0:
            raise RevedgeError(
                f"--budget auto: {format_bytes(free)} are available, less than the {format_bytes(reserve)} "
                "kept for the system; end other programs, or give --budget as a size"
            )
        return free - reserve
    if budget > ram:
        raise RevedgeError(
            f"--budget {format_bytes(budget)} is more than the {format_bytes(ram)} of RAM; give less"
        )
    if budget > free - reserve:
        notes.append(
            f"the budget is more than is free now beside the system ({format_bytes(max(0, free - reserve))})"
        )
    return budget


def _write_report(payload: dict[str, Any], path: str) -> None:
    from revedge.planner import report

    text = report.page(payload)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RevedgeError(
            f"--report {path} cannot be written ({error.strerror}); choose a folder that you can write"
        ) from None


def _save(plan: Any, path: str) -> None:
    try:
        plan.save(path)
    except OSError as error:
        raise RevedgeError(
            f"--out {path} cannot be written ({error.strerror}); choose a folder that you can write"
        ) from None


class _Progress:
    """One line on stderr that is written over: configurations tried and time."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._shown_s = -1.0
        self._live = sys.stderr.isatty()
        self._tried = 0

    def __call__(self, tried: int) -> None:
        self._tried = tried
        now_s = time.monotonic()
        if self._live and now_s - self._shown_s >= 0.1:
            self._shown_s = now_s
            print(f"\r{self._line()}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        print(("\r" if self._live else "") + self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        return f"planning: {self._tried} configurations tried, {time.monotonic() - self._began_s:.1f} s"
