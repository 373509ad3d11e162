"""What `--budget` means for `revedge plan`: the same as for `revedge train`, or what the board's file says."""

import argparse

import pytest

from revedge.cli import plan_target, train
from revedge.devices import meter
from revedge.errors import BudgetError, UsageError


def of_board(device: str, **words: object) -> tuple[dict[str, int], list[str]]:
    notes: list[str] = []
    args = {"device": device, "threads": None, "accelerator": "cpu", **words}
    return plan_target.of_board(argparse.Namespace(**args), notes), notes


def asked(budget: str, device: str | None = None) -> tuple[int, list[str]]:
    notes: list[str] = []
    found = plan_target.budget_bytes(argparse.Namespace(budget=budget, device=device), notes)
    return found, notes


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand on a machine with 8 GiB, 6 of them free."""
    monkeypatch.setattr(meter, "total_bytes", lambda: 8 << 30)
    monkeypatch.setattr(meter, "available_bytes", lambda: 6 << 30)
    monkeypatch.delenv("REVEDGE_RESERVE", raising=False)


@pytest.mark.parametrize("reserve", [None, "100MiB", "4GiB"])
def test_auto_is_the_budget_of_a_training(
    monkeypatch: pytest.MonkeyPatch, reserve: str | None
) -> None:
    """plan and train take the same of this machine, whatever REVEDGE_RESERVE leaves to the system."""
    before = asked("auto")[0]
    if reserve is not None:
        monkeypatch.setenv("REVEDGE_RESERVE", reserve)
    found, _ = asked("auto")
    assert found == train._budget("auto")
    assert (found == before) is (reserve is None)


def test_nothing_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all left to the system there is no automatic budget, for neither command, and the error says why."""
    monkeypatch.setenv("REVEDGE_RESERVE", "6GiB")
    for ask in (asked, train._budget):
        with pytest.raises(BudgetError, match="lower REVEDGE_RESERVE, or give --budget as a size"):
            ask("auto")


def test_a_size_is_held_against_what_is_free() -> None:
    """More than the machine is refused, more than is free is noted."""
    assert asked("1GiB") == (1 << 30, [])
    found, notes = asked("7GiB")
    assert found == 7 << 30
    assert "more than is free now beside the system (5.6 GiB)" in notes[0]
    with pytest.raises(BudgetError, match=r"more than this machine has: 8\.0 GiB"):
        asked("8GiB")


def test_a_board_has_its_own_ram() -> None:
    """What is free here counts for no board; the note says what is known of its RAM, and what is taken."""
    found, notes = asked("auto", "jetson-orin-nano-4gb")
    assert 2 << 30 < found < 3 << 30
    assert "MemTotal unknown, taken as 3.4 GiB" in notes[0]
    assert "this machine" in notes[0]
    found, notes = asked("7GiB", "raspberry-pi-5-8gb")
    assert found == 7 << 30
    assert "more than the system leaves to a training" in notes[1]


def test_a_board_has_its_own_pages_and_cores() -> None:
    """They are taken from its file; threads that were asked for stay, if it has so many cores; notes say the rest."""
    assert of_board("raspberry-pi-5-8gb") == ({"page_bytes": 16384, "threads": 4}, [])
    assert of_board("raspberry-pi-4-4gb", threads=4) == ({"page_bytes": 4096}, [])
    with pytest.raises(
        UsageError, match=r"--threads 5 is more than Raspberry Pi 4 .* give at most 4"
    ):
        of_board("raspberry-pi-4-4gb", threads=5)
    found, notes = of_board("generic-cpu")
    assert found == {}
    assert "page size" in notes[0]


def test_a_plan_for_the_cpu_of_a_gpu_board_says_so() -> None:
    """The note names the option for the GPU; with it there is none."""
    _, notes = of_board("jetson-orin-nano-8gb")
    assert "give --accelerator cuda" in notes[0]
    assert of_board("jetson-orin-nano-8gb", accelerator="cuda")[1] == []
