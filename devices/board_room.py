"""What a training may take of a board that is not at hand.

Of some boards it is not known what Linux makes of the chips, or what its system leaves: that is then taken from the
boards of which it is known, those of the same kind where there are any, and of them the one that leaves least.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from revedge.devices import boards
from revedge.devices.admission import reserve_of
from revedge.devices.boards import Board
from revedge.errors import BudgetError
from revedge.units import format_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Bytes of a board: of its chips, what Linux makes of them, and what a training may have beside the system."""

    ram_bytes: int
    total_bytes: int  # MemTotal
    total_known: bool
    free_bytes: int  # beside a system without a desktop, and beside what admission leaves to it

    def text(self) -> str:
        """Return it as people read it."""
        total = f"MemTotal {format_bytes(self.total_bytes)}"
        if not self.total_known:
            total = f"MemTotal unknown, taken as {format_bytes(self.total_bytes)}"
        return (
            f"{format_bytes(self.ram_bytes)} of RAM, {total}, "
            f"{format_bytes(self.free_bytes)} of it for a training beside a system without a desktop"
        )


def room(board: Board) -> Room | None:
    """Return what a training may take of ``board``; None if not even its RAM is known."""
    total_known = board.mem_total_bytes is not None
    if board.mem_total_bytes is not None:
        total = board.mem_total_bytes
    elif board.ram_bytes is not None:
        total = int(board.ram_bytes * min(_known(board, _share)))
    else:
        return None
    available = board.mem_available_bytes
    if available is None:  # a system grows with the RAM, but not in proportion
        bytes_taken = max(_known(board, _taken_bytes))
        share_taken = max(_known(board, _taken_share))
        available = total - max(int(bytes_taken), int(share_taken * total))
    return Room(
        ram_bytes=board.ram_bytes or total,
        total_bytes=total,
        total_known=total_known,
        free_bytes=max(0, available - reserve_of(total)),
    )


def automatic_budget(board: Board, found: Room) -> int:
    """Return the budget of ``--budget auto --device BOARD``.

    Raises:
        BudgetError: its system leaves nothing.
    """
    if not found.free_bytes:
        raise BudgetError(
            f"--budget auto: {board.title} has {found.text()}; give --budget as a size",
        )
    return found.free_bytes


def _known(board: Board, figure: Callable[[Board], float | None]) -> list[float]:
    """Return a figure of all boards of which it is known: of the kind of ``board``, or else of any."""
    every = [(each.kind, figure(each)) for each in _boards()]
    known = [(kind, value) for kind, value in every if value is not None]
    return [value for kind, value in known if kind == board.kind] or [value for _, value in known]


@functools.cache
def _boards() -> tuple[Board, ...]:
    return tuple(map(boards.load, boards.names()))


def _share(board: Board) -> float | None:
    """MemTotal in sizes of the chips."""
    if board.mem_total_bytes is None or board.ram_bytes is None:
        return None
    return board.mem_total_bytes / board.ram_bytes


def _taken_bytes(board: Board) -> float | None:
    """What the system takes of MemTotal."""
    if board.mem_total_bytes is None or board.mem_available_bytes is None:
        return None
    return board.mem_total_bytes - board.mem_available_bytes


def _taken_share(board: Board) -> float | None:
    """The same in sizes of MemTotal."""
    taken = _taken_bytes(board)
    return None if taken is None else taken / (board.mem_total_bytes or 1)
