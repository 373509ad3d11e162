"""A tiny real training: two classes of 8 x 8 frames, a VGG of two channels."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from revedge.data.writer import Samples, write_cache
from revedge.devices.run_folder import RunFolder, RunSettings
from revedge.planner.plan import Plan

from .processes import Start

MakeRun = Callable[..., RunFolder]
BUDGET_BYTES = 1 << 30


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a frame cache of 48 training and 16 test samples, T = 2."""
    rng = np.random.default_rng(0)
    labels = np.arange(64, dtype=np.int64) % 2
    frames = (rng.random((64, 2, 2, 8, 8)) < 0.2 + 0.3 * labels[:, None, None, None, None]).astype(
        np.uint8
    )
    path = tmp_path_factory.mktemp("cache") / "tiny"
    samples = Samples((2, 8, 8), 2, ("few", "many"), labels, 48, 1.0, iter(frames))
    write_cache(samples, path, "tiny", {}, {})
    return path


def make_plan(**changes: Any) -> Plan:
    """Return the plan of the tiny training."""
    values: dict[str, Any] = {
        "model": "vgg5",
        "model_options": {"width": 2},
        "data": "npz",
        "in_shape": (2, 8, 8),
        "num_classes": 2,
        "timesteps": 2,
        "batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 0.01,
        "warmup_steps": 4,
        "label_smoothing": 0.1,
        "augment_shift": 1,
        "epochs": 8,
        "budget_bytes": BUDGET_BYTES,
        "predicted_peak_bytes": 400 << 20,
        "parts": {"base_bytes": 400 << 20},
    }
    return Plan(**(values | changes))


@pytest.fixture
def make_run(tmp_path: Path, tiny_cache: Path) -> MakeRun:
    """Return a function that begins a run folder of the tiny training, ready to be resumed."""

    def make(name: str, *, checkpoint_every_s: float = 0.0, **changes: Any) -> RunFolder:
        run = RunFolder(tmp_path / name)
        run.make()
        settings = RunSettings(str(tiny_cache), seed=3, checkpoint_every_s=checkpoint_every_s)
        run.begin(make_plan(**changes).to_toml(), settings)
        return run

    return make


@pytest.fixture
def start(tmp_path: Path, child_env: dict[str, str]) -> Iterator[Start]:
    """Return a function that starts `revedge` in a session of its own; whatever is left at the end is killed."""
    begun: list[subprocess.Popen[str]] = []

    def go(
        *words: str,
        largest_file_bytes: int | None = None,
        inside: Callable[..., list[str]] = lambda *command: list(command),
        **env: str,
    ) -> "subprocess.Popen[str]":
        limit = [] if largest_file_bytes is None else ["prlimit", f"--fsize={largest_file_bytes}"]
        process = subprocess.Popen(
            inside(*limit, sys.executable, "-m", "revedge.cli.main", *words),
            cwd=tmp_path,
            env={**child_env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield go
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()
