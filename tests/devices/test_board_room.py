"""What a training may take of a board: known figures as they are, unknown ones from the least of those that are."""

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
    with pytest.raises(BudgetError, match="give --budget as a size"):
        board_room.automatic_budget(boards.load(str(path)), known_room(str(path)))


def test_the_ram_of_any_cpu_is_unknown() -> None:
    """Where not even the RAM is known nothing is made up."""
    assert board_room.room(boards.load("generic-cpu")) is None
