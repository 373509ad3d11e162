"""`revedge plan`: which training fits into a number of bytes, and why not a larger one."""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from revedge.cli.search_options import add_data_options, add_search_options, wishes
from revedge.errors import RevedgeError, UsageError
from revedge.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from revedge.devices.boards import Board
    from revedge.planner.request import Request

_EPILOG = """examples:
  revedge plan --data digits --model revsresnet11 --budget 400MiB --verify --out plan.toml
  revedge plan --in-shape 3,32,32 --classes 10 --model ms-resnet18 --budget 1GiB --depth 8..64 --timesteps 4..16
  revedge plan --data nmnist --data-dir DIR --model revsresnet --budget auto --device raspberry-pi-4-2gb
"""
_RESERVE_BYTES, _RESERVE_SHARE = 128 * 10**6, 0.05


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
    add_data_options(parser)
    add("--in-shape", metavar="C,H,W", help="in place of --data: shape of a frame")
    add("--classes", type=int, metavar="K", help="with --in-shape: number of classes")
    add("--static", action="store_true", help="with --in-shape: images, not event frames")
    add_search_options(parser)
    add("--device", metavar="BOARD", help="plan for this board (see revedge devices list)")
    add(
        "--accelerator",
        choices=("cpu", "cuda"),
        default="cpu",
        help="train on the CPU (default), or on the GPU of the board or of this machine",
    )
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


def run(args: argparse.Namespace) -> int:
    """Search, print, and return 0, or 1 where nothing fits or the plan does not hold."""
    from revedge.cli.output import emit
    from revedge.planner import explain
    from revedge.planner.choose import choose

    notes: list[str] = []
    request = _request(args, notes)
    progress = _Progress()
    here = args.device is None and not args.no_times  # steps of another board cannot be timed
    result = choose(
        request,
        progress,
        timeline=args.report is not None,
        times=here,
        here=args.device is None,
    )
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

    wanted, data = wishes(args), _data(args)
    _check_precision(args, notes)
    return Request.of(
        wanted,
        **data,
        budget_bytes=_budget_bytes(args, notes),
        device=args.accelerator,
        context_bytes=_context_bytes(args, notes),
    )


def _check_precision(args: argparse.Namespace, notes: list[str]) -> None:
    """Refuse a precision that the board, or the CPU of this machine, does not train in."""
    from revedge.planner.precision import AUTO, require_here

    if args.precision == AUTO and (args.device is not None or args.no_times):
        notes.append("--precision auto: float32, because no step can be timed")
    if args.device is None:
        if args.accelerator == "cpu":
            require_here(args.precision)
        return
    from revedge.devices import boards

    if args.precision == "bfloat16":
        board = boards.load(args.device)
        where, known = _precisions(board, args.accelerator)
        if known is None:
            notes.append(f"whether the {where} of {board.title} computes in bfloat16 is not known")
        elif "bfloat16" not in known:
            raise UsageError(
                f"--precision bfloat16: the {where} of {board.title} computes in {' and '.join(known)}; "
                "take --precision float32"
            )


def _precisions(board: "Board", accelerator: str) -> tuple[str, tuple[str, ...] | None]:
    if accelerator == "cuda":
        return "GPU", board.gpu_precisions
    return "CPU", board.cpu_precisions


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
        "timesteps": info.timesteps,
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
    if args.device is not None:
        return _budget_of_board(args.device, budget, notes)
    ram, free = meter.total_bytes(), meter.available_bytes()
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


def _budget_of_board(name: str, budget: int | None, notes: list[str]) -> int:
    """The budget, as given or of its own accord, held against the RAM of a board."""
    from revedge.devices import board_room, boards

    board = boards.load(name)
    found = board_room.room(board)
    size = "whose RAM is not known" if found is None else found.text()
    notes.append(
        f"planned for {board.title}: {size}; with the base of torch as measured on this machine, so verify on the "
        "board with revedge plan --verify"
    )
    if budget is None:
        if found is None:
            raise UsageError(f"the RAM of board {board.name} is not known; give --budget as a size")
        return board_room.automatic_budget(board, found)
    most = board.largest_budget_bytes or budget
    if budget > most:
        raise RevedgeError(
            f"--budget {format_bytes(budget)} is more than the {format_bytes(most)} of RAM; give less"
        )
    if found is not None and budget > found.free_bytes:
        notes.append(
            f"the budget is more than the system leaves to a training ({format_bytes(found.free_bytes)})"
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
