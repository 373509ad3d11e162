"""Each example runs as its docstring says, is short, and needs what it claims."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

RunPython = Callable[..., subprocess.CompletedProcess[str]]
EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder for frame caches that the examples of this file share."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_say_how_to_run(path: Path) -> None:
    """Each is under 100 lines, and its docstring holds its own command line."""
    text = path.read_text("utf-8")

    assert text.count("\n") < 100
    assert f"python examples/{path.name}" in text.split('"""')[1]


def test_there_are_four() -> None:
    """Train in a budget, a custom model, stream an exported model, a model of the user's own."""
    assert [path.name[:3] for path in EXAMPLES] == ["01_", "02_", "03_", "04_"]


def test_readme_python_runs(root: Path, run_python: RunPython) -> None:
    """The README's program runs as it stands there."""
    block = (root / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    done = run_python("-c", block)

    assert done.returncode == 0, done.stderr
    assert len(block.splitlines()) <= 10


def test_custom_model(run_python: RunPython, cache: str) -> None:
    """Every strategy gives the gradient digest of every other, and the loop trains."""
    done = run_python(str(EXAMPLES[1]), "--steps", "2", timeout_s=300, REVEDGE_CACHE=cache)
    assert done.returncode == 0, done.stderr
    digests = {line.split()[-1] for line in done.stdout.splitlines() if "gradients" in line}

    assert len(digests) == 1
    assert "step   1  loss 2." in done.stdout


def test_your_own_model(run_python: RunPython, cache: str) -> None:
    """All neurons get into runs, the gradient is that of ordinary autograd to rounding, and the loop trains."""
    done = run_python(str(EXAMPLES[3]), "--steps", "2", timeout_s=300, REVEDGE_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert "Net: 6 runs hold 9 neurons; 0 left on ordinary autograd" in done.stdout
    found = re.search(r"against ordinary autograd: (\S+)", done.stdout)

    assert found is not None
    assert float(found[1]) < 1e-4  # PLAIN_TOLERANCE of tests/engine
    assert "step   1  loss 2." in done.stdout


def test_train_in_a_budget_then_stream(
    run_python: RunPython, revedge_command: RunPython, tmp_path: Path, cache: str
) -> None:
    """A training stays below its budget; what it exports streams without torch."""
    plan = ("plan", "--data", "digits", "--timesteps", "4", "--budget", "1MiB", "--json")
    refused = revedge_command(*plan, timeout_s=200, REVEDGE_CACHE=cache)
    floor_bytes = json.loads(refused.stdout.splitlines()[-1])["floor_bytes"]
    budget = f"{(floor_bytes >> 20) + 128}MiB"
    words = ("--budget", budget, "--epochs", "1", "--timesteps", "4", "--out", "run")
    done = run_python(str(EXAMPLES[0]), *words, timeout_s=400, REVEDGE_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert "fits: True" in done.stdout
    assert "measured peak" in done.stdout

    export = revedge_command(
        "export", "run", "--format", "onnx", "-o", "out", timeout_s=400, REVEDGE_CACHE=cache
    )
    assert export.returncode == 0, export.stderr
    done = run_python(str(EXAMPLES[2]), "out/model.onnx", timeout_s=200, REVEDGE_CACHE=cache)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("recording of a")]) == 3
    assert all(len(line.split(":")[1].split()) == 4 for line in lines[:3])  # one per frame
    assert lines[-1].endswith("torch loaded: False")
