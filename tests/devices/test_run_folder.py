"""The run folder: lock, settings, metrics lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from revedge.devices.metrics_log import MetricsLog, read_metrics
from revedge.devices.run_folder import RunFolder, RunSettings
from revedge.errors import RevedgeError, UsageError


def test_settings_come_back(tmp_path: Path) -> None:
    """What `begin` writes, `settings` reads; only then the run counts as begun."""
    run = RunFolder(tmp_path / "a" / "b")
    run.make()
    assert not run.begun
    run.begin("text", RunSettings("/cache", 7, 2.5))
    assert run.begun
    assert run.settings() == RunSettings("/cache", 7, 2.5)
    assert run.plan.read_text() == "text"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ('{"version": 1}', "is damaged"),
        ('{"version": 2}', "is of run version 2, this revedge reads 1"),
        ("[]", "is damaged"),
    ],
)
def test_damaged_settings_are_a_clear_error(tmp_path: Path, text: str, message: str) -> None:
    """The file is named and what to do is said."""
    run = RunFolder(tmp_path)
    run.config.write_text(text)
    with pytest.raises(RevedgeError, match=message):
        run.settings()


def test_one_training_per_folder(tmp_path: Path) -> None:
    """A second lock is refused while the first is held, and given after it is let go."""
    run = RunFolder(tmp_path)
    lock = run.lock()
    with pytest.raises(RevedgeError, match=f"another training \\(process {os.getpid()}\\)"):
        run.lock(wait_s=0.1)
    os.close(lock)
    os.close(run.lock(wait_s=0.1))


def test_the_lock_lasts_as_long_as_the_trainer(tmp_path: Path) -> None:
    """A child that got the descriptor holds the lock after its parent let go."""
    run = RunFolder(tmp_path)
    lock = run.lock()
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock]
    )
    os.close(lock)
    with pytest.raises(RevedgeError, match="another training"):
        run.lock(wait_s=0.1)
    child.communicate(b"")
    os.close(run.lock(wait_s=2.0))


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    """A folder without a run, and none at all, are usage errors."""
    with pytest.raises(UsageError, match="holds no training"):
        RunFolder(tmp_path).require_begun()
    with pytest.raises(UsageError, match="does not exist"):
        RunFolder(tmp_path / "no").require_begun()


def test_metrics_lines_of_repeated_steps_go(tmp_path: Path) -> None:
    """After a rewind only lines up to that step stand there, and half a line is gone."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.write({"event": "step", "step": step}, step * 1.0)
    log.write({"event": "memory", "peak_bytes": 77}, 5.5)
    with path.open("a") as file:
        file.write('{"event": "st')
    log = MetricsLog(path)
    assert (log.offset_s, log.peak_bytes) == (5.5, 77)
    log.rewind(3)
    log.write({"event": "step", "step": 4}, 1.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("step") for line in lines] == [1, 2, 3, None, 4]
    assert lines == read_metrics(path)
    assert lines[-1]["time_s"] == 6.5


def test_an_epoch_line_that_was_never_written_comes_back(tmp_path: Path) -> None:
    """A kill between checkpoint and line loses no epoch, and one that stands there is not doubled."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"event": "epoch", "epoch": 1, "step": 6}, 1.0)
    for epoch, step in ((1, 8), (2, 12), (2, 12)):
        log.rewind(step, {"epoch": epoch, "step": 6 * epoch})
    lines = read_metrics(log.path)
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 6), (2, 12)]


def test_metrics_that_cannot_be_written_stop_nothing(tmp_path: Path) -> None:
    """A folder in place of the file: the problem is remembered, nothing is raised."""
    (tmp_path / "metrics.jsonl").mkdir()
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"event": "step"}, 0.0)
    log.rewind(1)
    assert log.failed is not None
    assert "cannot be written" in log.failed
