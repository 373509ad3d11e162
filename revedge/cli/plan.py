"""`revedge plan`: which training fits into a number of bytes, and why not a larger one."""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from revedge.cli import plan_target, search_options
from revedge.cli.net_options import parse_shape
from revedge.errors import RevedgeError, UsageError
from revedge.units import format_bytes, format_seconds
from revedge.user_code import require_unchanged

if TYPE_CHECKING:
    from revedge.planner.plan import Plan
    from revedge.planner.request import Request
    from revedge.planner.step_time import StepTime

_EPILOG = """examples:
  revedge plan --data digits --model revsresnet11 --budget 400MiB --verify --out plan.toml
  revedge plan --in-shape 3,32,32 --classes 10 --model ms-resnet18 --budget 1GiB --depth 8..64 --timesteps 4..16
  revedge plan --data nmnist --data-dir DIR --model revsresnet --budget auto --device raspberry-pi-4-2gb --out pi.toml
  revedge plan --plan pi.toml --verify    (on the board)
"""
# What a plan file says already, and what has no sense beside it.
_FIXED_BY_PLAN = ("budget", "data", "data_dir", "in_shape", "classes", "static", *search_options.NAMES, "device",
                  "accelerator", "no_times", "out")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `revedge plan`."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add(
        "--budget",
        metavar="SIZE",
        help="bytes for the whole training, as 400MiB, or auto",
    )
    add("--plan", metavar="FILE", help="show this plan, made before; with --verify on the board")
    search_options.add_data_options(parser)
    add("--in-shape", metavar="C,H,W", help="in place of --data: shape of a frame")
    add("--classes", type=int, metavar="K", help="with --in-shape: number of classes")
    add("--static", action="store_true", help="with --in-shape: images, not event frames")
    search_options.add_search_options(parser)
    add("--device", metavar="BOARD", help="plan for this board (see revedge devices list)")
    add(
        "--accelerator",
        choices=("cpu", "cuda"),
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
        help="run two real steps on this machine, and refuse a plan that was too low",
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

    if args.plan is not None:
        return _given(args)
    if args.budget is None:
        raise UsageError(
            "--budget is missing; give a size, as in --budget 400MiB, or auto, or show a plan with --plan FILE"
        )
    if args.verify and args.device is not None:
        raise UsageError(
            f"--verify runs real steps on this machine, not on {args.device}; write the plan with --out plan.toml, "
            "and on the board: revedge plan --plan plan.toml --verify"
        )
    notes: list[str] = []
    args.accelerator = args.accelerator or "cpu"
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
    payload["notes"] = notes
    text = "\n".join([explain.text(result), *(f"note: {note}" for note in notes)]).strip()
    if args.device is not None:
        text += "\ntime of a step: unknown; measure it on the board with revedge plan --plan FILE --verify"
    if result.plan is None:
        _report(args, payload)
        emit(args, text, {**payload, "error": f"{result.reason}; {result.way_out}", "exit_code": 1})
        print(f"revedge: error: {result.reason}; {result.way_out}", file=sys.stderr)
        return 1
    return _told(args, result.plan, text, payload, result.step_time)


def _given(args: argparse.Namespace) -> int:
    """Show the plan of a file, and verify it here; return the exit code."""
    from revedge.planner import explain
    from revedge.planner.plan import Plan

    search_options.refuse_beside_plan(args, _FIXED_BY_PLAN)
    plan = Plan.load(args.plan)
    require_unchanged(plan.model, plan.model_sha256)
    return _told(args, plan, explain.text_of_plan(plan), explain.payload_of_plan(plan), None)


def _told(
    args: argparse.Namespace,
    plan: "Plan",
    text: str,
    payload: dict[str, Any],
    step_time: "StepTime | None",
) -> int:
    """Verify ``plan`` if that is wanted, write what is to be written, print, and return the exit code."""
    from revedge.cli.output import emit

    _report(args, payload)
    problem = None
    if args.verify:
        more, found, problem = _verified(plan, step_time, from_file=args.plan is not None)
        text, payload = f"{text}\n{more}".strip(), payload | found
    if problem is not None:
        emit(args, text, {**payload, "error": problem, "exit_code": 1})
        print(f"revedge: error: {problem}", file=sys.stderr)
        return 1
    if args.out is not None:
        _save(plan, args.out)
        payload["out"] = args.out
        text += f"\n{args.out}"
    emit(args, text, payload)
    return 0


def _verified(
    plan: "Plan", step_time: "StepTime | None", *, from_file: bool
) -> tuple[str, dict[str, Any], str | None]:
    """Run two steps of ``plan`` here; return lines, what was measured, and what is wrong (None if it holds)."""
    from revedge.planner import explain
    from revedge.planner.verify import verify

    found = verify(plan)
    if found.problem is not None and not found.of_memory:
        return "", {}, f"the plan could not be verified: {found.problem}"
    ratio = found.measured_peak_bytes / plan.predicted_peak_bytes
    text = f"measured peak {format_bytes(found.measured_peak_bytes)} ({100 * ratio:.1f} % of the prediction)"
    payload: dict[str, Any] = {
        "measured_peak_bytes": found.measured_peak_bytes,
        "step_s": found.step_s,
    }
    if found.step_s is not None and step_time is not None:
        corrected = step_time.corrected([found.step_s])
        payload["step_time"] = corrected.to_json()
        text += f"\n{explain.time_text(corrected)}"
    elif found.step_s is not None:
        text += f"\na step took {format_seconds(found.step_s)}"
    if found.problem is None:
        return text, payload, None
    advice = (
        "plan again on this machine, without --device" if from_file else "give a larger --budget"
    )
    return text, payload, f"the plan does not hold: {found.problem}; {advice}"


def _request(args: argparse.Namespace, notes: list[str]) -> "Request":
    from revedge.planner.request import Request

    wanted, data = search_options.wishes(args), _data(args)
    plan_target.check_precision(args, notes)
    budget_bytes = plan_target.budget_bytes(args, notes)
    wanted |= plan_target.of_board(args, notes)
    return Request.of(
        wanted,
        **data,
        budget_bytes=budget_bytes,
        device=args.accelerator,
        context_bytes=plan_target.context_bytes(args, notes),
    )


def _data(args: argparse.Namespace) -> dict[str, Any]:
    """Name and shape of the data: of a data set, or as given."""
    if (args.data is None) == (args.in_shape is None):
        raise UsageError("give either --data, or --in-shape with --classes")
    if args.data is None:
        if args.classes is None:
            raise UsageError("--classes is missing; --in-shape needs it, as in --classes 10")
        return {
            "data": "random",
            "in_shape": parse_shape(args.in_shape),
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


def _report(args: argparse.Namespace, payload: dict[str, Any]) -> None:
    """Write the page of ``--report``; its timeline is for nothing else."""
    if args.report is None:
        return
    from revedge.planner import report

    text = report.page(payload)
    payload.pop("timeline", None)
    payload["report"] = args.report
    try:
        with open(args.report, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RevedgeError(
            f"--report {args.report} cannot be written ({error.strerror}); choose a folder that you can write"
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
