"""`revedge plan`: its JSON, its exit codes, and what it says when the answer is no."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from revedge import child
from revedge.cli.main import main
from revedge.planner.plan import Plan

SHAPE = (
    "--in-shape",
    "2,16,16",
    "--classes",
    "10",
    "--model",
    "revsresnet11",
    "--batch",
    "4",
    "--no-times",
)


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = main(["plan", *words, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]), captured.err


def test_feasible(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A plan that fits: exit 0, the frozen keys, a file that loads, a progress line on stderr."""
    # Room for everything, however much this machine's torch takes.
    out = tmp_path / "plan.toml"
    code, found, err = plan(capsys, *SHAPE, "--budget", "2GiB", "--out", str(out))
    assert code == 0
    assert found["feasible"] is True
    assert found["floor_bytes"] <= found["predicted_peak_bytes"] <= 2 * 2**30
    assert found["config"]["strategy"] == "store"
    assert all(
        set(each) == {"config", "predicted_peak_bytes", "missing_bytes", "reason"}
        for each in found["rejected"]
    )
    assert Plan.load(out).predicted_peak_bytes == found["predicted_peak_bytes"]
    # It is small, so rehearsed; what was computed of it is among the alternatives.
    peaks = {each["config"]["strategy"]: each for each in reversed(found["alternatives"])}
    assert found["computed_peak_bytes"] == peaks["store"]["predicted_peak_bytes"]
    assert "configurations tried" in err


def test_infeasible(capsys: pytest.CaptureFixture[str]) -> None:
    """A budget that is too small: exit 1 with the floor, and that floor is feasible."""
    code, found, err = plan(capsys, *SHAPE, "--budget", "200MiB")
    assert (code, found["feasible"], found["config"]) == (1, False, None)
    assert found["predicted_peak_bytes"] is None
    assert "give --budget" in err
    assert "Traceback" not in err
    floor = found["floor_bytes"]
    assert plan(capsys, *SHAPE, "--budget", str(floor))[0] == 0
    assert plan(capsys, *SHAPE, "--budget", str(floor - 1))[0] == 1


def test_verify(capsys: pytest.CaptureFixture[str]) -> None:
    """--verify adds what two real steps took, below the prediction."""
    code, found, _ = plan(capsys, *SHAPE, "--budget", "600MiB", "--verify")
    assert code == 0
    assert 0 < found["measured_peak_bytes"] <= found["predicted_peak_bytes"]


def test_a_second_search_starts_no_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was searched once is remembered whole: the same plan without a tracing or measuring process."""
    words = [*SHAPE, "--budget", "600MiB", "--strategy", "reverse"]
    _, first, _ = plan(capsys, *words)
    for name in ("trace_client.TraceClient._start", "base.probe"):
        monkeypatch.setattr(f"revedge.planner.{name}", None)
    code, second, _ = plan(capsys, *words)
    assert code == 0
    assert second["config"] == first["config"]


def test_times(capsys: pytest.CaptureFixture[str]) -> None:
    """The plan and each alternative have an interval of seconds for a step; with --device nobody can know."""
    words = [*SHAPE[:-1], "--budget", "600MiB", "--strategy", "store", "--slab", "none"]
    code, found, _ = plan(capsys, *words)
    assert code == 0
    assert 0 < found["step_time"]["least_s"] <= found["step_time"]["most_s"]
    assert all("step_time" in each for each in found["alternatives"])
    _, board, _ = plan(capsys, *words, "--device", "raspberry-pi-5-8gb")
    assert "step_time" not in board


def test_a_board(capsys: pytest.CaptureFixture[str]) -> None:
    """--budget auto --device takes the board's RAM, and says whose base was taken."""
    code, found, _ = plan(capsys, *SHAPE, "--budget", "auto", "--device", "jetson-orin-nano-8gb")
    assert code == 0
    assert 4 * 2**30 < found["budget_bytes"] < 8 * 2**30
    assert "this machine" in found["notes"][0]


def test_a_gpu_of_a_board(capsys: pytest.CaptureFixture[str]) -> None:
    """On CUDA the plan has what the allocator reserves and a prior for the driver, which a note calls an estimate."""
    words = [*SHAPE, "--budget", "auto", "--strategy", "reverse", "--slab", "none"]
    _, cpu, _ = plan(capsys, *words, "--device", "jetson-orin-nano-8gb")
    cuda = ("--accelerator", "cuda")
    code, found, _ = plan(capsys, *words, "--device", "jetson-orin-nano-8gb", *cuda)
    assert code == 0
    parts = found["config"]["parts"]
    assert found["config"]["device"] == "cuda"
    assert parts["pool_bytes"] > 0
    assert parts["base_bytes"] - cpu["config"]["parts"]["base_bytes"] == 1_150_000_000
    assert any("upper estimate, measured on no board" in note for note in found["notes"])
    code, found, _ = plan(capsys, *words, "--device", "raspberry-pi-5-8gb", *cuda)
    assert code == 2
    assert "no GPU" in found["error"]


def test_the_precision_of_a_board(capsys: pytest.CaptureFixture[str]) -> None:
    """bfloat16 is planned where the board has it, refused where it has not, and noted where that is not known."""
    words = [*SHAPE, "--budget", "3GiB", "--precision", "bfloat16", "--strategy", "reverse"]
    cuda = ("--accelerator", "cuda")
    code, found, _ = plan(capsys, *words, "--device", "jetson-orin-nano-8gb", *cuda)
    assert (code, found["config"]["precision"]) == (0, "bfloat16")
    code, found, _ = plan(capsys, *words, "--device", "jetson-xavier-nx", *cuda)
    assert code == 2
    assert "computes in float32 and float16; take --precision float32" in found["error"]
    code, found, _ = plan(capsys, *words, "--device", "raspberry-pi-4-8gb")
    assert code == 2
    assert "the CPU of Raspberry Pi 4" in found["error"]
    _, found, _ = plan(capsys, *words, "--device", "generic-cpu")
    assert any("is not known" in note for note in found["notes"])
    words[words.index("bfloat16")] = "auto"
    _, found, _ = plan(capsys, *words)
    assert found["config"]["precision"] == "float32"
    assert any("no step can be timed" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--precision", "float16"), "loss scaling"),
        (("--device", "jetson-orin-nano-9gb"), "did you mean"),
        (("--model", "revsresnet12"), "did you mean"),
        (("--prefer", "size"), "choose one of"),
        (("--strategy", "magic"), "choose one of"),
        (("--in-shape", "2,16"), "channels,height,width"),
        (("--data", "digits"), "either --data, or --in-shape"),
        (("--timesteps", "0"), "1 or more"),
        (("--budget", "many"), "not understood"),
        (("--depth", "1"), "depth"),
        (("--depth", "99999999"), "give at most 10000"),
        (("--depth", "1..99999999999999999999"), "give at most 10000"),
        (("--width", "1..999999"), "give at most 10000"),
        (("--timesteps", "1..999999"), "give at most 100000"),
        (("--batch", "999999999"), "give at most 1000000"),
        (("--threads", str(1 + (os.cpu_count() or 1))), "than this machine has cores"),
        (("--threads", "5", "--device", "raspberry-pi-4-8gb"), "give at most 4"),
        (("--budget", "9" * 400), "digits; give fewer"),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], words: tuple[str, str], says: str
) -> None:
    """What does not exist or does not parse: exit 2, one line that says what to do."""
    code, found, err = plan(capsys, *SHAPE, "--budget", "600MiB", *words)
    assert code == found["exit_code"] == 2
    assert says in found["error"]
    assert "Traceback" not in err


def test_a_file_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """--out in a folder that is not there: exit 1 and a reason."""
    out = tmp_path / "missing" / "plan.toml"
    code, found, _ = plan(capsys, *SHAPE, "--budget", "600MiB", "--out", str(out))
    assert code == 1
    assert "cannot be written" in found["error"]


def test_the_process_stays_free_of_torch() -> None:
    """A whole `revedge plan` never imports torch into its own process."""
    code = (
        "import sys; from revedge.cli.main import main; "
        f"code = main({['plan', *SHAPE, '--budget', '600MiB', '--json']!r}); "
        "sys.exit(code or ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=child.environment(),
    )
    assert done.returncode == 0, done.stderr
