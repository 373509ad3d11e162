"""`revedge devices`: list, show and probe."""

import json
import subprocess
from collections.abc import Callable

import pytest

from revedge.cli.main import main
from revedge.devices.boards import names

RunCommand = Callable[..., subprocess.CompletedProcess[str]]


def test_list_has_a_line_for_each_board(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per board under a header."""
    assert main(["devices", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in lines[1:]] == names()
    assert lines[0].split()[:2] == ["board", "RAM"]


def test_list_json_has_units_in_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    """--json after the action gives every board, with its sources."""
    assert main(["devices", "list", "--json"]) == 0
    boards = json.loads(capsys.readouterr().out.splitlines()[-1])["boards"]

    nano = next(board for board in boards if board["name"] == "jetson-nano")
    assert nano["ram_bytes"] == 4 * 2**30
    assert nano["sources"]["ram_bytes"]["source"]


@pytest.mark.parametrize("words", [["--json", "show"], ["show", "--json"]], ids=" ".join)
def test_json_before_or_after_the_action(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """--json may stand on either side of the action."""
    assert main(["devices", *words, "jetson-thor"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["sm_count"] == 20


def test_show_says_what_is_not_verified(capsys: pytest.CaptureFixture[str]) -> None:
    """Each number stands with its source, and says when nobody looked it up there."""
    assert main(["devices", "show", "jetson-tx2"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:]}

    assert "not verified" in lines["bandwidth_bytes_per_s"]
    assert "unknown" in lines["mem_total_bytes"]


def test_unknown_board_names_close_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt board is a usage error, in one line that names what was meant."""
    assert main(["devices", "show", "jetson-orin-nano-8g"]) == 2
    expected = "board 'jetson-orin-nano-8g' is not known; did you mean jetson-orin-nano-8gb?"
    assert capsys.readouterr().err == f"revedge: error: {expected}\n"


def test_probe_tells_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """The probe's numbers are positive, and usable memory is no more than there is."""
    assert main(["devices", "probe", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert 0 < machine["usable_bytes"] <= machine["mem_total_bytes"]
    assert machine["page_size_bytes"] in (4096, 16384, 65536)
    assert machine["gpus"] is None


def test_probe_asks_torch_in_a_child(revedge_command: RunCommand) -> None:
    """--gpu gives a list of CUDA devices, empty with a reason where there is none."""
    done = revedge_command("devices", "probe", "--gpu", "--json")
    machine = json.loads(done.stdout.splitlines()[-1])

    assert isinstance(machine["gpus"], list)
    assert machine["gpus"] or machine["gpu_note"] == "torch sees no CUDA device"
