"""`revedge train`: plan, then train under a supervisor, inside a RAM limit."""

import argparse
import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revedge.cli import search_options
from revedge.errors import UsageError
from revedge.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from revedge.devices.progress import Progress
    from revedge.devices.run_folder import RunFolder
    from revedge.devices.supervisor import Outcome
    from revedge.planner.plan import Plan

_EPILOG = """examples:
  revedge train --data digits --budget 400MiB --epochs 8 --seed 0 --out runs/digits
  revedge train --data digits --budget 1GiB --model ms-resnet18 --depth 8..64 --timesteps 4..16 --out runs/deep
  revedge train --resume runs/digits
"""
_DEFAULT_EPOCHS = 10
_FIXED_BY_PLAN = ("data", *search_options.NAMES, "lr", "device")
_FIXED_ON_RESUME = (*_FIXED_BY_PLAN, "data_dir", "epochs", "seed", "budget", "plan", "out", "checkpoint_every_s",
                    "finish")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `revedge train`; absent ones are None, so that --resume can tell."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    search_options.add_data_options(parser)
    add(
        "--budget",
        metavar="SIZE",
        help="bytes for supervisor and trainer together, as 400MiB, or auto",
    )
    add(
        "--epochs",
        type=_count,
        metavar="N",
        help=f"passes over the training split (default: {_DEFAULT_EPOCHS})",
    )
    add(
        "--seed",
        type=int,
        metavar="S",
        help="of weights, order, dropout and augmentation (default: 0)",
    )
    add("--out", metavar="DIR", help="folder of the run; made if missing")
    add("--resume", metavar="DIR", help="continue the training of this folder")
    add("--plan", metavar="FILE", help="train exactly this plan (see revedge plan --out)")
    search_options.add_search_options(parser)
    add("--lr", type=float, metavar="RATE", help="peak learning rate")
    add("--device", choices=("cpu", "cuda"), help="where to train (default: cpu)")
    add(
        "--checkpoint-every-s",
        type=_seconds,
        metavar="S",
        help="seconds between checkpoints (default: 5)",
    )
    add(
        "--finish",
        choices=("exact",),
        help="exact: end with some epochs on a grid of 8-bit weights, for revedge export --numerics exact",
    )


def run(args: argparse.Namespace) -> int:
    """Train, print the outcome, and return the exit code."""
    from revedge.devices.run_folder import RunFolder

    if args.resume is not None:
        _refuse_changes(args)
        folder = RunFolder(args.resume)
        folder.require_begun()
        lock = folder.lock()
        result = folder.read_result()
        if result is not None:
            if folder.settings().finish:
                return _finish(args, folder, lock, result)
            return _print(args, result, f"{folder.path} is trained already; nothing to do")
        plan = _resumed_plan(folder)
    else:
        folder, lock = _new_folder(args)
        try:
            plan = _begin(args, folder)
        except BaseException:
            folder.discard_unbegun()
            raise
    return _train(args, folder, lock, plan)


def _new_folder(args: argparse.Namespace) -> tuple["RunFolder", int]:
    from revedge.devices.run_folder import RunFolder

    if args.out is None:
        raise UsageError("--out is missing; name the folder of this run, as in --out runs/first")
    if args.plan is None and (args.data is None or args.budget is None):
        missing = "--data" if args.data is None else "--budget"
        raise UsageError(f"{missing} is missing; give --data and --budget, or --plan, or --resume")
    folder = RunFolder(args.out)
    folder.make()
    lock = folder.lock(wait_s=0.0)
    if folder.begun:
        raise UsageError(
            f"--out {folder.path} holds a training already; continue it with --resume {folder.path}, or "
            "choose another folder"
        )
    return folder, lock


def _begin(args: argparse.Namespace, folder: "RunFolder") -> "Plan":
    """Prepare the data, plan, admit; write plan and settings."""
    from revedge.devices.admission import admit, check_budget
    from revedge.devices.preparation import prepare, prepare_plan
    from revedge.devices.run_folder import RunSettings
    from revedge.planner.precision import require_here

    if args.plan is not None:
        plan = _given_plan(args)
        if plan.device == "cpu":
            require_here(plan.precision)
        else:
            _require_cuda(f"--plan {args.plan} is for CUDA")
        admit(plan)
        prepared = prepare_plan(plan)
    else:
        if args.device == "cuda":
            _require_cuda("--device cuda")
        else:
            require_here(args.precision)
        budget_bytes = _budget(args.budget)
        check_budget(budget_bytes)
        prepared = prepare(_wanted(args, budget_bytes))
    plan = dataclasses.replace(
        prepared.plan, epochs=args.epochs or prepared.plan.epochs or _DEFAULT_EPOCHS
    )
    admit(plan)
    every_s = 5.0 if args.checkpoint_every_s is None else args.checkpoint_every_s
    settings = RunSettings(prepared.cache, args.seed or 0, every_s, finish=args.finish or "")
    folder.begin(plan.to_toml(), settings, prepared.planning, prepared.ladder)
    return plan


def _require_cuda(asked: str) -> None:
    from revedge.devices.accelerator import require_cuda  # 2 MiB that a supervisor would keep

    require_cuda(asked)


def _given_plan(args: argparse.Namespace) -> "Plan":
    """Load --plan; --budget and --data-dir may stand beside it."""
    from revedge.planner.plan import Plan

    search_options.refuse_beside_plan(args, _FIXED_BY_PLAN)
    plan = Plan.load(args.plan)
    if args.data_dir is not None:
        plan = dataclasses.replace(plan, data_dir=args.data_dir)
    if args.budget is not None:
        plan = dataclasses.replace(plan, budget_bytes=_budget(args.budget))
    return plan


def _wanted(args: argparse.Namespace, budget_bytes: int) -> dict[str, Any]:
    """Return what is asked of the planner; None where it may choose."""
    return {
        "budget_bytes": budget_bytes,
        "data": args.data,
        "data_dir": args.data_dir,
        **search_options.wishes(args),
        "learning_rate": args.lr,
        "device": args.device or "cpu",
    }


def _resumed_plan(folder: "RunFolder") -> "Plan":
    """Load the plan of a begun run, and its frames, should they be gone."""
    from revedge.devices.admission import admit
    from revedge.devices.preparation import prepare_plan
    from revedge.planner.plan import Plan

    plan = Plan.load(folder.plan)
    settings = folder.settings()
    if not Path(settings.cache).is_dir():
        prepared = prepare_plan(plan)
        folder.begin(plan.to_toml(), dataclasses.replace(settings, cache=prepared.cache))
    admit(plan)
    return plan


def _budget(text: str) -> int:
    from revedge.devices.admission import automatic_budget

    return automatic_budget() if text.strip().lower() == "auto" else parse_bytes(text)


def _train(args: argparse.Namespace, folder: "RunFolder", lock: int, plan: "Plan") -> int:
    import json

    from revedge.devices.atomic import replace_text
    from revedge.devices.progress import Progress
    from revedge.devices.supervisor import Supervisor

    progress = Progress(plan.budget_bytes)
    outcome = Supervisor(folder, lock, progress).train()
    if outcome.done is None:
        _draw(folder, plan, progress)
        number = outcome.stopped_by or signal.SIGTERM
        text = (
            f"stopped at step {outcome.step}; continue with: revedge train --resume {folder.path}"
        )
        payload = {**_payload(outcome, folder), "stopped": True, "step": outcome.step}
        _print(args, payload, text)
        return 128 + number
    result = _payload(outcome, folder)
    try:
        replace_text(folder.result, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        progress.say(f"warning: {folder.result} cannot be written ({error.strerror})")
    _draw(folder, plan, progress)
    if folder.settings().finish:
        return _finish(args, folder, lock, result)
    share = 100 * outcome.measured_peak_bytes / plan.budget_bytes
    return _print(
        args,
        result,
        f"test accuracy {100 * result['test_accuracy']:.2f} %  peak {format_bytes(outcome.measured_peak_bytes)} "
        f"({share:.0f} % of {format_bytes(plan.budget_bytes)}, predicted "
        f"{format_bytes(outcome.plan.predicted_peak_bytes)})  {outcome.wall_s:.0f} s\n{folder.path}",
    )


def _draw(folder: "RunFolder", plan: "Plan", progress: "Progress") -> None:
    from revedge.devices import picture

    problem = picture.draw_in_child(folder.path, plan.budget_bytes)
    if problem:
        progress.say(problem)


def _finish(
    args: argparse.Namespace, folder: "RunFolder", lock: int, result: dict[str, Any]
) -> int:
    """Put the trained network on its exact grid, or go on with that; the training's lock is still held."""
    from revedge.devices.finish import exact_folder, finish

    del lock
    outcome = finish(folder)
    exact = exact_folder(folder).read_result()
    if exact is None:
        assert outcome is not None
        number = outcome.stopped_by or signal.SIGTERM
        text = f"stopped in the finish, at step {outcome.step}; continue with: revedge train --resume {folder.path}"
        _print(args, {**result, "stopped": True, "step": outcome.step}, text)
        return 128 + number
    text = (
        f"test accuracy {100 * exact['test_accuracy']:.2f} % on the exact grid, {100 * result['test_accuracy']:.2f} % "
        f"before  peak {format_bytes(max(exact['measured_peak_bytes'], result['measured_peak_bytes']))} of "
        f"{format_bytes(exact['budget_bytes'])}\n{folder.path}"
    )
    return _print(args, {**result, "exact": exact}, text)


def _payload(outcome: "Outcome", folder: "RunFolder") -> dict[str, Any]:
    plan = dataclasses.asdict(outcome.plan)
    return {
        "test_accuracy": None if outcome.done is None else outcome.done["test_accuracy"],
        "budget_bytes": outcome.plan.budget_bytes,
        "predicted_peak_bytes": outcome.plan.predicted_peak_bytes,
        "measured_peak_bytes": outcome.measured_peak_bytes,
        "epochs": outcome.plan.epochs,
        "wall_s": round(outcome.wall_s, 3),
        "plan": plan,
        "seed": folder.settings().seed,
        "run": str(folder.path),
        "restarts": outcome.restarts,
        "sessions": outcome.sessions,
    }


def _print(args: argparse.Namespace, payload: dict[str, Any], text: str) -> int:
    from revedge.cli.output import emit

    emit(args, text, payload)
    return 0


def _refuse_changes(args: argparse.Namespace) -> None:
    """A resumed run continues as it was begun; --out may repeat the folder."""
    given = [name for name in _FIXED_ON_RESUME if getattr(args, name) is not None]
    if "out" in given and Path(args.out).resolve() == Path(args.resume).resolve():
        given.remove("out")
    if given:
        option = "--" + given[0].replace("_", "-")
        raise UsageError(
            f"{option} does not go with --resume, which continues {args.resume} as it was begun; leave it out, "
            "or begin another run with --out"
        )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more seconds")
    return value
