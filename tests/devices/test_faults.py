"""Faults that hit a real `revedge train` from outside: it ends with the bits of an undisturbed one, or says why not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from revedge.devices.metrics_log import read_metrics
from revedge.devices.run_folder import RunFolder

from .conftest import MakeRun
from .processes import (
    DEADLINE_S,
    Start,
    child_of,
    digest,
    finish,
    gone,
    newest,
    reached,
    trainer_of,
    wait,
)

EPOCHS = 12
# A C library's clock that is ten years ahead in one quarter of a second and ten years behind in the next.
_JUMPING_CLOCK = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *found) {
    const long failed = syscall(SYS_clock_gettime, id, found);
    if (id == CLOCK_REALTIME)
        found->tv_sec += found->tv_nsec / 250000000 % 2 ? 315360000 : -315360000;
    return (int)failed;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


@pytest.fixture(scope="module")
def kept() -> dict[str, object]:
    """Return where the first undisturbed training leaves its result and the digest of its weights."""
    return {}


@pytest.fixture
def whole(make_run: MakeRun, start: Start, kept: dict[str, object]) -> dict[str, object]:
    """Return what an undisturbed training ends with."""
    if not kept:
        run = make_run("whole", epochs=EPOCHS)
        kept |= finish(start("train", "--resume", str(run.path), "--json"))
        kept["digest"] = digest(run)
    return kept


def _kill_after(run: RunFolder, step: int, process: "subprocess.Popen[str]") -> None:
    """End supervisor and trainer at once, some steps into the run."""
    wait(partial(reached, run, step), process)
    process.kill()
    process.wait()
    os.close(run.lock())  # the trainer has ended too


def test_killed_at_any_moment_and_resumed_gives_the_same_bits(
    make_run: MakeRun, start: Start, whole: dict[str, object]
) -> None:
    """SIGKILL of the trainer and of the supervisor, in start-up, in steps and while checkpoints are written."""
    rng = random.Random(0)
    cut = make_run("cut", epochs=EPOCHS)
    process = start("train", "--resume", str(cut.path), "--json")
    for victim, step in (("trainer", 0), ("trainer", 3), ("supervisor", 20), ("supervisor", 40)):
        wait(partial(trainer_of, process), process)
        wait(partial(reached, cut, step), process)
        time.sleep(rng.random() * 0.02)
        trainer = trainer_of(process)
        assert trainer is not None
        os.kill(trainer if victim == "trainer" else process.pid, signal.SIGKILL)
        while not gone(trainer):
            time.sleep(0.005)
        if victim == "supervisor":
            process.wait(DEADLINE_S)
            process = start("train", "--resume", str(cut.path), "--json")
    resumed = finish(process)
    assert resumed["sessions"] == 3
    assert resumed["test_accuracy"] == whole["test_accuracy"]
    assert digest(cut) == whole["digest"]
    lines = [line["step"] for line in read_metrics(cut.metrics) if line["event"] == "epoch"]
    assert lines == [6 * epoch for epoch in range(1, EPOCHS + 1)]


def test_killed_before_the_run_has_begun_leaves_no_process(start: Start, tmp_path: Path) -> None:
    """The child that plans ends with the command that started it, and so do its own children."""
    words = ["--data", "digits", "--model", "vgg5", "--timesteps", "2", "--budget", "1GiB"]
    process = start("train", *words, "--out", "run", REVEDGE_CACHE=str(tmp_path / "cache"))
    wait(lambda: _planners(process.pid), process)
    process.kill()
    planners = _planners(process.pid)
    process.wait()
    for pid, patience_s in zip(
        planners, (2.0, 20.0), strict=True
    ):  # the second sees it at its next answer
        until = time.monotonic() + patience_s
        while not gone(pid):
            assert time.monotonic() < until
            time.sleep(0.02)


def _planners(pid: int) -> list[int]:
    """Return the planning child and its child, once both are there."""
    first = child_of(pid, b"revedge.devices.preparation")
    second = first and child_of(first, b"revedge.planner")
    return [first, second] if first and second else []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_a_clean_checkpoint(
    make_run: MakeRun, start: Start, number: signal.Signals
) -> None:
    """The exit code names the signal, nothing is orphaned, and a checkpoint of that very step was written."""
    run = make_run("stopped", epochs=5000, checkpoint_every_s=1000.0)
    process = start("train", "--resume", str(run.path), "--json")
    wait(lambda: newest(run) >= 12, process)
    trainer = trainer_of(process)
    assert trainer is not None
    if number == signal.SIGINT:  # as Ctrl-C: to the whole group
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    found = finish(process, 128 + number)
    assert found["stopped"] is True
    assert newest(run) == found["step"]
    assert gone(trainer)


def test_stopped_for_a_while_and_continued_gives_the_same_bits(
    make_run: MakeRun, start: Start, whole: dict[str, object]
) -> None:
    """SIGSTOP and SIGCONT of either process lose nothing, and no process is started again."""
    run = make_run("stood", epochs=EPOCHS)
    process = start("train", "--resume", str(run.path), "--json")
    wait(partial(reached, run, 2), process)
    trainer = trainer_of(process)
    assert trainer is not None
    for pid in (process.pid, trainer):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
    assert finish(process)["restarts"] == 0
    assert digest(run) == whole["digest"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 2 MiB; the test is skipped where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system can only be mounted by root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_runs_full_loses_nothing(
    make_run: MakeRun, start: Start, whole: dict[str, object], small_disk: Path
) -> None:
    """From the middle of a run on no byte can be written: it says so, keeps its last checkpoint, and goes on later."""
    run = make_run("disk/run", epochs=EPOCHS)
    process = start("train", "--resume", str(run.path))
    wait(partial(reached, run, 3), process)
    trainer = trainer_of(process)
    assert trainer is not None
    os.kill(trainer, signal.SIGSTOP)  # on a busy machine it would come to its end meanwhile
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        _fill(ballast)
    before = newest(run)
    os.kill(trainer, signal.SIGCONT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "No space left on device); the last good one is kept and training goes on" in err
    assert "free some space, then continue with --resume" in err.strip().splitlines()[-1]
    assert before <= newest(run) < 6 * EPOCHS
    ballast.unlink()
    finish(start("train", "--resume", str(run.path), "--json"))
    assert digest(run) == whole["digest"]


def _fill(path: Path) -> None:
    """Write until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit (util-linux)")
def test_files_that_cannot_grow_lose_nothing(
    make_run: MakeRun, start: Start, whole: dict[str, object]
) -> None:
    """With every file limited below a checkpoint's size, training says so and the last good one continues it."""
    run = make_run("full", epochs=EPOCHS)
    _kill_after(run, 3, start("train", "--resume", str(run.path)))
    before = newest(run)
    size = next(run.checkpoints.glob("*.safetensors")).stat().st_size
    process = start("train", "--resume", str(run.path), largest_file_bytes=size // 2)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "the last good one is kept and training goes on" in err
    assert "continue with --resume" in err.strip().splitlines()[-1]
    assert newest(run) == before
    finish(start("train", "--resume", str(run.path), "--json"))
    assert digest(run) == whole["digest"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"), [(_truncate, "is truncated"), (_flip, "is damaged")]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    make_run: MakeRun,
    start: Start,
    whole: dict[str, object],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    """The command goes on from the last good checkpoint, to the same bits; with none good it stops with one line."""
    run = make_run("damaged", epochs=EPOCHS)
    _kill_after(run, 3, start("train", "--resume", str(run.path)))
    last = sorted(run.checkpoints.glob("*.safetensors"))[-1]
    damage(last)
    process = start("train", "--resume", str(run.path))
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert f"{last.name} {message}" in err
    assert digest(run) == whole["digest"]
    run.result.unlink()
    for path in run.checkpoints.glob("*.safetensors"):
        damage(path)
    process = start("train", "--resume", str(run.path))
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    line = err.strip().splitlines()[-1]
    assert line.startswith("revedge: error: no checkpoint in")
    assert "remove that folder" in line


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_clock_that_jumps_changes_nothing(
    make_run: MakeRun, start: Start, whole: dict[str, object], tmp_path: Path
) -> None:
    """Ten years ahead and ten years back, four times a second: the same bits, and times in the log that only grow."""
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(_JUMPING_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    probe = "import time; a = time.time(); time.sleep(0.25); print(abs(time.time() - a) > 1e8)"
    seen = subprocess.run(
        [sys.executable, "-c", probe],
        env={"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.strip() == "True"
    run = make_run("clock", epochs=EPOCHS)
    process = start("train", "--resume", str(run.path), "--json", LD_PRELOAD=str(library))
    result = finish(process)
    assert digest(run) == whole["digest"]
    assert 0.0 < result["wall_s"] < DEADLINE_S
    times_s = [line["time_s"] for line in read_metrics(run.metrics)]
    assert times_s == sorted(times_s)
