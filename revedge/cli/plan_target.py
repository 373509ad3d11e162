"""Where a plan is for: a board, or this machine, and what that means for budget, precision and CUDA."""

import argparse
from typing import TYPE_CHECKING

from revedge.errors import RevedgeError, UsageError
from revedge.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from revedge.devices.boards import Board


def budget_bytes(args: argparse.Namespace, notes: list[str]) -> int:
    """Return the budget: as given, or what this machine, or the board, may give to a training.

    Raises:
        UsageError: it is no size, or the RAM of the board is not known.
        BudgetError: it is more than there is, or nothing is free.
    """
    from revedge.devices import admission

    auto = args.budget.strip().lower() == "auto"
    budget = None if auto else parse_bytes(args.budget)
    if args.device is not None:
        return _budget_of_board(args.device, budget, notes)
    if budget is None:
        return admission.automatic_budget()
    admission.check_budget(budget)
    room = admission.room_bytes()
    if budget > room:
        notes.append(
            f"the budget is more than is free now beside the system ({format_bytes(room)})"
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
        "board with revedge plan --plan FILE --verify"
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


def of_board(args: argparse.Namespace, notes: list[str]) -> dict[str, int]:
    """Return what a request takes from a board's file: the size of its memory pages, and its cores as threads."""
    if args.device is None:
        return {}
    from revedge.devices import boards

    board, found = boards.load(args.device), dict[str, int]()
    if board.page_size_bytes is None:
        notes.append(f"the page size of {board.title} is not known; that of this machine is taken")
    else:
        found["page_bytes"] = board.page_size_bytes
    if board.cpu_cores is not None:
        if args.threads is None:
            found["threads"] = board.cpu_cores
        elif args.threads > board.cpu_cores:
            raise UsageError(
                f"--threads {args.threads} is more than {board.title} has cores; give at most {board.cpu_cores}"
            )
    if args.accelerator == "cpu" and board.compute_capability not in (None, "none"):
        notes.append(
            f"this plan is for the CPU of {board.title}; for its GPU give --accelerator cuda"
        )
    return found


def check_precision(args: argparse.Namespace, notes: list[str]) -> None:
    """Refuse a precision that the board, or the CPU of this machine, does not train in.

    Raises:
        UsageError: names what it computes in.
    """
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


def context_bytes(args: argparse.Namespace, notes: list[str]) -> int | None:
    """Return what CUDA takes on a board that is not this machine; None where it is measured or not used.

    Raises:
        UsageError: the board has no GPU for CUDA, or nobody has measured what CUDA takes there.
    """
    if args.accelerator == "cpu":
        return None
    if args.device is None:
        from revedge.devices.accelerator import require_cuda

        require_cuda("--accelerator cuda")
        return None
    from revedge.devices import boards

    board = boards.load(args.device)
    if board.compute_capability in (None, "none"):
        raise UsageError(f"board {board.name} has no GPU for CUDA; leave out --accelerator cuda")
    found = board.facts["cuda_context_bytes"]
    if board.cuda_context_bytes is None:
        raise UsageError(
            f"what driver and libraries of CUDA take on {board.title} is not known; write cuda_context_bytes into its "
            "file, or plan on the board"
        )
    notes.append(
        f"{format_bytes(board.cuda_context_bytes)} are taken for driver and libraries of CUDA"
        + ("" if found.verified else f", which is not verified: {found.source}")
    )
    return board.cuda_context_bytes
