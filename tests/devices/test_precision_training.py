"""Training in bfloat16, and a training that is planned from ranges: as a user runs them."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from revedge.planner.precision import cpu_lacks_bfloat16

from .conftest import MakeRun
from .processes import Start, digest, finish, newest, wait

needs_bfloat16 = pytest.mark.skipif(
    cpu_lacks_bfloat16() is not None, reason=str(cpu_lacks_bfloat16())
)


@needs_bfloat16
def test_bfloat16_is_the_same_training_under_every_strategy(
    make_run: MakeRun, start: Start
) -> None:
    """Strategies and a stop in the middle change no bit of it, the precision does, and cannot be changed on the way."""
    low: dict[str, Any] = {"precision": "bfloat16", "epochs": 8, "model_options": {"width": 16}}
    runs = [make_run(name, **low, strategy=name) for name in ("store", "keep-spikes")]
    full = make_run("full", **{**low, "precision": "float32"})
    process = start("train", "--resume", str(runs[0].path))
    wait(lambda: newest(runs[0]) >= 1, process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    text = runs[0].plan.read_text()
    runs[0].plan.write_text(text.replace("bfloat16", "float32"))
    process = start("train", "--resume", str(runs[0].path))
    assert "another training" in process.communicate()[1]
    assert process.returncode == 1
    runs[0].plan.write_text(text)

    results = [finish(start("train", "--resume", str(run.path), "--json")) for run in runs]
    assert all(result["plan"]["precision"] == "bfloat16" for result in results)
    assert digest(runs[0]) == digest(runs[1])
    finish(start("train", "--resume", str(full.path), "--json"))
    assert digest(full) != digest(runs[0])


def test_a_training_is_planned_from_ranges_and_from_trainings(tmp_path: Path, start: Start) -> None:
    """What is free is climbed within its range in one command; another one chooses among finished trainings."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = (rng.random((80, 1, 8, 8)) * (60 + 120 * labels[:, None, None, None])).astype(np.uint8)
    np.savez(
        tmp_path / "data.npz",
        train_x=images[:64], train_y=labels[:64], test_x=images[64:], test_y=labels[64:],
    )  # fmt: skip
    common = (
        "--data",
        "npz",
        "--data-dir",
        "data.npz",
        "--budget",
        "1GiB",
        "--batch",
        "8",
        "--json",
    )
    words = ("--model", "ms-resnet6", "--width", "4..8", "--depth", "1..2", "--timesteps", "2..3")
    result = finish(start("train", *common, *words, "--out", "first", "--epochs", "1"))
    assert result["plan"]["model_options"] == {"width": 8, "depth": 2}
    assert result["plan"]["timesteps"] == 3
    words = ("--prefer", "accuracy-per-byte", "--runs", "first", "--precision", "auto")
    result = finish(start("train", *common, *words, "--out", "second", "--epochs", "1"))
    assert result["plan"]["model_options"] == {"width": 8, "depth": 2}
    assert result["plan"]["precision"] in ("float32", "bfloat16")
