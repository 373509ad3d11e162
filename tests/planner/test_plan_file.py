"""`revedge plan --plan FILE`: a plan made elsewhere is shown and verified here, and only here."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from revedge.cli.main import main
from revedge.planner import verify
from revedge.planner.plan import Plan

SHAPE = ("--in-shape", "2,16,16", "--classes", "10", "--model", "revsresnet11", "--batch", "4")


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = main(["plan", *words, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]), captured.out + captured.err


@pytest.fixture
def path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Path:
    """Return a plan for a board, made here."""
    out = tmp_path / "plan.toml"
    board = ("--budget", "600MiB", "--device", "raspberry-pi-5-8gb")
    assert plan(capsys, *SHAPE, *board, "--out", str(out))[0] == 0
    return out


def test_a_plan_is_shown_and_verified(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    """The file's configuration and parts, and with --verify what two steps take on this machine."""
    code, found, text = plan(capsys, "--plan", str(path))
    assert code == 0
    assert found["predicted_peak_bytes"] == Plan.load(path).predicted_peak_bytes
    assert "measured_peak_bytes" not in found
    assert "revsresnet11 T=8 batch 4" in text
    code, found, text = plan(capsys, "--plan", str(path), "--verify")
    assert code == 0
    assert 0 < found["measured_peak_bytes"] <= found["predicted_peak_bytes"]
    assert "a step took" in text


def test_too_low_a_plan_of_a_file(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    """What takes more here than the file says is refused; the way out is a plan of this machine."""
    given = Plan.load(path)
    parts = {**given.parts, "base_bytes": given.parts["base_bytes"] - (40 << 20)}
    total = sum(parts.values())
    dataclasses.replace(given, parts=parts, predicted_peak_bytes=total).save(path)
    code, found, _ = plan(capsys, "--plan", str(path), "--verify")
    assert code == 1
    assert "more than predicted; plan again on this machine" in found["error"]


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    """A plan for a GPU that this machine lacks: nothing was measured, and a larger budget is no remedy."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    dataclasses.replace(Plan.load(path), device="cuda").save(path)
    code, found, text = plan(capsys, "--plan", str(path), "--verify")
    assert code == 1
    assert "could not be verified: device 'cuda' is not there" in found["error"]
    assert "measured_peak_bytes" not in found
    assert "measured peak" not in text
    assert "--budget" not in text


def test_a_larger_budget_is_for_want_of_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a search the advice is a larger budget where memory was the problem, and only there."""
    for of_memory in (True, False):
        said = verify.Verification(
            measured_peak_bytes=1 << 30, step_s=None, problem="it broke", of_memory=of_memory
        )
        monkeypatch.setattr(verify, "verify", lambda plan, said=said: said)
        code, found, _ = plan(capsys, *SHAPE, "--no-times", "--budget", "600MiB", "--verify")
        assert code == 1
        assert ("give a larger --budget" in found["error"]) is of_memory
        assert ("measured_peak_bytes" in found) is of_memory


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--budget", "1GiB", *SHAPE, "--device", "jetson-nano", "--verify"),
            "revedge plan --plan",
        ),
        (("--plan", "plan.toml", "--model", "vgg5"), "--model does not go with --plan"),
        (("--plan", "plan.toml", "--budget", "1GiB"), "--budget does not go with --plan"),
        (("--plan", "missing.toml"), "missing.toml"),
        (SHAPE, "--budget is missing"),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    """What cannot be verified from here, and what a file says already, is refused in one line."""
    code, found, text = plan(capsys, *words)
    assert code == found["exit_code"] == 2
    assert says in found["error"]
    assert "Traceback" not in text
