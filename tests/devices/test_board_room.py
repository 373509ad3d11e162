"""What a training may take of a board: known figures as they are, unknown ones from the least of those that are."""

import dataclasses
import re
from pathlib import Path

import pytest

from revedge.devices import admission, board_room, boards
from revedge.errors import BudgetError

_FOLDER = Path(boards.__file__).parent / "boards"


def known_room(name: str) -> board_room.Room:
    found = board_room.room(boards.load(name))
    assert found is not None
    return found


@pytest.mark.parametrize("name", [name for name in boards.names() if name != "generic-cpu"])
def test_a_part_of_a_part(name: str) -> None:
    """A training has less than MemTotal less the reserve; an unknown MemTotal is the least share of its kind."""
    board, found = boards.load(name), known_room(name)

    assert found.total_known == (board.mem_total_bytes is not None)
    assert 0 < found.free_bytes < found.total_bytes - admission.reserve_of(found.total_bytes)
    assert found.total_bytes < found.ram_bytes == board.ram_bytes
    for other in map(boards.load, boards.names()):
        if other.mem_total_bytes and other.ram_bytes and other.kind == board.kind:
            share = other.mem_total_bytes / other.ram_bytes
            assert found.total_known or found.total_bytes <= share * found.ram_bytes + 1
    assert ("unknown" in found.text()) != found.total_known


def test_less_where_less_is_known() -> None:
    """Of two boards with 4 GiB the one of which MemTotal is unknown gets the smaller budget."""
    nano, orin = boards.load("jetson-nano"), boards.load("jetson-orin-nano-4gb")
    budgets = [board_room.automatic_budget(b, known_room(b.name)) for b in (nano, orin)]

    assert nano.ram_bytes == orin.ram_bytes
    assert budgets[1] < budgets[0]


MB = 10**6


def made_up(
    kind: str, ram_mb: int | None, total_mb: int | None, available_mb: int | None
) -> boards.Board:
    """Return a board of so many megabytes."""
    figures = zip(
        ("ram_bytes", "mem_total_bytes", "mem_available_bytes"),
        (n and n * MB for n in (ram_mb, total_mb, available_mb)),
        strict=True,
    )
    return dataclasses.replace(boards.load("jetson-nano"), kind=kind, **dict(figures))


KNOWN = (
    made_up("jetson", 4000, 3600, 2700),  # its system takes 900, a quarter
    made_up("jetson", 8000, 7600, 6600),  # 1000, less than a seventh
    made_up("raspberry-pi", 2000, 1000, 200),
    made_up("raspberry-pi", 2000, None, None),
)


@pytest.mark.parametrize(
    ("kind", "ram_mb", "total_mb", "available_mb", "total", "free"),
    [
        ("jetson", 2000, None, None, 1800, 1800 - 1000 - 128),  # the most bytes that one takes
        ("jetson", 32000, None, None, 28800, 28800 * 3 // 4 - 28800 // 20),  # the largest share
        ("jetson", 32000, 32000, None, 32000, 24000 - 1600),
        ("jetson", 32000, 32000, 31000, 32000, 31000 - 1600),
        ("raspberry-pi", 8000, None, None, 4000, 800 - 200),
        (
            "generic",
            8000,
            None,
            None,
            4000,
            800 - 200,
        ),  # of no kind that is known: the least of all
        ("generic", None, 4000, 3000, 4000, 3000 - 200),
    ],
)
def test_what_is_unknown_is_the_least_of_its_kind(
    kind: str,
    ram_mb: int | None,
    total_mb: int | None,
    available_mb: int | None,
    total: int,
    free: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By hand, of boards made up: MemTotal in shares of the chips; what a system takes in bytes or shares, the more."""
    monkeypatch.setattr(board_room, "_boards", lambda: KNOWN)
    found = board_room.room(made_up(kind, ram_mb, total_mb, available_mb))
    assert found is not None
    assert (found.total_bytes, found.free_bytes) == (total * MB, free * MB)
    assert found.ram_bytes == (ram_mb or total) * MB


def test_known_figures_are_taken(tmp_path: Path) -> None:
    """MemTotal and MemAvailable that stand in a board file are taken as they are, less the reserve."""
    text = (_FOLDER / "jetson-orin-nano-8gb.toml").read_text("utf-8")
    figures = (("mem_total_bytes", 2_000_000_000), ("mem_available_bytes", 1_000_000_000))
    for table, number in figures:
        text = re.sub(rf"(\[{table}\]\nvalue = )[0-9_]+", rf"\g<1>{number}", text)
    path = tmp_path / "mine.toml"
    path.write_text(text)

    found = known_room(str(path))
    assert (found.total_bytes, found.free_bytes) == (2_000_000_000, 1_000_000_000 - 128_000_000)
    path.write_text(text.replace("= 1000000000", "= 1000"))
    with pytest.raises(BudgetError, match=r"8\.0 GiB of RAM, .*; give --budget as a size"):
        board_room.automatic_budget(boards.load(str(path)), known_room(str(path)))


def test_the_ram_of_any_cpu_is_unknown() -> None:
    """Where not even the RAM is known nothing is made up."""
    assert board_room.room(boards.load("generic-cpu")) is None
