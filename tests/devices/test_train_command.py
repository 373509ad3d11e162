"""`revedge train` as a user runs it: kills and resuming, stopping, running out of memory, refusals, --json."""

import hashlib
import json
import math
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
from revedge.planner.plan import Plan

from .conftest import MakeRun, make_plan

KEYS = {
    "test_accuracy", "budget_bytes", "predicted_peak_bytes", "measured_peak_bytes", "epochs", "wall_s", "plan",
}  # fmt: skip
DEADLINE_S = 120.0
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, child_env: dict[str, str]) -> Iterator[Start]:
    """Return a function that starts `revedge` in a session of its own; whatever is left is killed."""
    begun: list[subprocess.Popen[str]] = []

    def go(*words: str, largest_file_bytes: int | None = None) -> "subprocess.Popen[str]":
        limit = [] if largest_file_bytes is None else ["prlimit", f"--fsize={largest_file_bytes}"]
        process = subprocess.Popen(
            [*limit, sys.executable, "-m", "revedge.cli.main", *words],
            cwd=tmp_path,
            env=child_env,
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


def _finish(process: "subprocess.Popen[str]", code: int = 0) -> dict:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, err
    return json.loads(out.splitlines()[-1])


def _digest(run: RunFolder) -> str:
    return hashlib.sha256(run.model.read_bytes()).hexdigest()


def _trainer_of(process: "subprocess.Popen[str]") -> int | None:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        children = path.read_text().split()
    except OSError:
        return None
    for child in children:
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"revedge.devices.trainer" in words:
            return int(child)
    return None


def _wait(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.005)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_killed_at_any_moment_and_resumed_gives_the_same_bits(
    make_run: MakeRun, start: Start
) -> None:
    """SIGKILL of the trainer and of the supervisor, in start-up, in steps and while checkpoints are written."""
    whole = make_run("whole", epochs=12)
    result = _finish(start("train", "--resume", str(whole.path), "--json"))
    assert result.keys() >= KEYS
    assert result["measured_peak_bytes"] > 200 << 20
    rng = random.Random(0)
    cut = make_run("cut", epochs=12)
    process = start("train", "--resume", str(cut.path), "--json")
    for victim, reached in (("trainer", 0), ("trainer", 3), ("supervisor", 20), ("supervisor", 40)):
        _wait(partial(_trainer_of, process), process)
        _wait(partial(_reached, cut, reached), process)
        time.sleep(rng.random() * 0.02)
        trainer = _trainer_of(process)
        assert trainer is not None
        os.kill(trainer if victim == "trainer" else process.pid, signal.SIGKILL)
        while not _gone(trainer):
            time.sleep(0.005)
        if victim == "supervisor":
            process.wait(DEADLINE_S)
            process = start("train", "--resume", str(cut.path), "--json")
    resumed = _finish(process)
    assert resumed["sessions"] == 3
    assert resumed["test_accuracy"] == result["test_accuracy"]
    assert _digest(cut) == _digest(whole)
    lines = [line["step"] for line in read_metrics(cut.metrics) if line["event"] == "epoch"]
    assert lines == [6 * epoch for epoch in range(1, 13)]


def _reached(run: RunFolder, step: int) -> bool:
    return _newest(run) >= step


def _newest(run: RunFolder) -> int:
    return max((int(p.stem[5:]) for p in run.checkpoints.glob("step-*.json")), default=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_a_clean_checkpoint(
    make_run: MakeRun, start: Start, number: signal.Signals
) -> None:
    """The exit code names the signal, nothing is orphaned, and a checkpoint of that very step was written."""
    run = make_run("stopped", epochs=5000, checkpoint_every_s=1000.0)
    process = start("train", "--resume", str(run.path), "--json")
    _wait(lambda: _newest(run) >= 12, process)
    trainer = _trainer_of(process)
    assert trainer is not None
    if number == signal.SIGINT:  # as Ctrl-C: to the whole group
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    found = _finish(process, 128 + number)
    assert found["stopped"] is True
    assert _newest(run) == found["step"]
    assert _gone(trainer)


def test_a_stopped_supervisor_and_a_running_trainer_go_on(make_run: MakeRun, start: Start) -> None:
    """SIGSTOP and SIGCONT of either process lose nothing."""
    run = make_run("paused", epochs=8)
    process = start("train", "--resume", str(run.path), "--json")
    _wait(lambda: _newest(run) >= 2, process)
    trainer = _trainer_of(process)
    assert trainer is not None
    for pid in (process.pid, trainer):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)
        os.kill(pid, signal.SIGCONT)
    assert _finish(process)["test_accuracy"] is not None


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit (util-linux)")
def test_files_that_cannot_grow_lose_nothing(make_run: MakeRun, start: Start) -> None:
    """With every file limited below a checkpoint's size, training says so and the last good one continues it."""
    whole = make_run("whole", epochs=4)
    _finish(start("train", "--resume", str(whole.path), "--json"))
    run = make_run("full", epochs=4)
    process = start("train", "--resume", str(run.path))
    _wait(partial(_reached, run, 3), process)
    process.kill()
    process.wait()
    os.close(run.lock())
    before = _newest(run)
    size = next(run.checkpoints.glob("*.safetensors")).stat().st_size
    process = start("train", "--resume", str(run.path), largest_file_bytes=size // 2)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "the last good one is kept and training goes on" in err
    assert "continue with --resume" in err.strip().splitlines()[-1]
    assert _newest(run) == before
    _finish(start("train", "--resume", str(run.path), "--json"))
    assert _digest(run) == _digest(whole)


def test_a_plan_with_all_savings_trains(make_run: MakeRun, start: Start) -> None:
    """A strategy per run, slabs, updates in backward and SGD: the trainer does what the plan says, to the same bits."""
    wide = {"model_options": {"width": 16}, "micro_batch_size": 8, "optimizer": "sgd", "epochs": 2}
    runs = [
        make_run("plain", **wide),
        make_run(
            "saving",
            **wide,
            strategy=("store", "keep-spikes", "keep-conv"),
            update_in_backward=True,
        ),
        make_run("slabs", **wide, slab_bytes=1),
    ]
    for run in runs:
        result = _finish(start("train", "--resume", str(run.path), "--json"))
        assert math.isfinite(result["test_accuracy"])
    page = runs[1].report.read_text("utf-8")
    assert "Measured peak" in page
    assert "Resident memory over the training" in page
    digests = [_digest(run) for run in runs]
    assert digests[0] == digests[1]  # slabs may round otherwise


def test_a_finished_run_is_not_trained_again(make_run: MakeRun, start: Start) -> None:
    """Resuming it prints the result that stands there; another --out over it is refused."""
    run = make_run("done", epochs=1)
    first = _finish(start("train", "--resume", str(run.path), "--json"))
    changed = run.model.stat().st_mtime_ns
    assert _finish(start("train", "--resume", str(run.path), "--json")) == first
    assert run.model.stat().st_mtime_ns == changed
    assert run.picture.is_file()


def test_out_of_memory_starts_again_one_rung_lower(make_run: MakeRun, start: Start) -> None:
    """A budget between the network alone and its batch: each rung is logged, predicted, shown, and the budget kept."""
    sizes = {
        "model": "ms-resnet10",
        "model_options": {"width": 32, "depth": 12},
        "batch_size": 48,
        "micro_batch_size": 48,
        "epochs": 1,
        "strategy": "store",
    }
    roomy = make_run("roomy", **sizes)
    peak = _finish(start("train", "--resume", str(roomy.path), "--json"))["measured_peak_bytes"]
    lines = read_metrics(roomy.metrics)
    base = next(line["base_bytes"] for line in lines if line["event"] == "start")
    own = next(line["now_bytes"] for line in lines if line["event"] == "memory")
    budget = base + own + (peak - base - own) * 2 // 3
    tight = {"budget_bytes": budget, "predicted_peak_bytes": 0, "parts": {"base_bytes": 0}}
    run = make_run("tight", **sizes, **tight)
    process = start("train", "--resume", str(run.path), "--json")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    rungs = [line for line in read_metrics(run.metrics) if line["event"] == "rung"]
    assert rungs[0]["change"].startswith("store -> keep-")
    assert "memory" in rungs[0]["why"]
    assert f"warning: out of memory ({rungs[0]['why']}); store -> keep-" in err
    peaks = [rung["predicted_peak_bytes"] for rung in rungs]
    assert peaks == sorted(peaks, reverse=True)
    found = Plan.load(run.plan)
    assert found.predicted_peak_bytes == sum(found.parts.values()) == peaks[-1]
    assert found.budget_bytes == budget >= peaks[0]
    result = json.loads(out.splitlines()[-1])
    assert result["measured_peak_bytes"] <= budget
    assert result["predicted_peak_bytes"] == peaks[-1]
    assert result["restarts"] == len(rungs)


def test_a_truncated_checkpoint_is_named_and_the_one_before_used(
    make_run: MakeRun, start: Start
) -> None:
    """The command goes on from the last good checkpoint and says so; with none good it stops with one line."""
    run = make_run("damaged", epochs=4)
    process = start("train", "--resume", str(run.path))
    _wait(lambda: _newest(run) >= 3, process)
    process.kill()
    process.wait()
    newest = sorted(run.checkpoints.glob("*.safetensors"))[-1]
    os.close(run.lock())
    newest.write_bytes(newest.read_bytes()[:-1])
    process = start("train", "--resume", str(run.path))
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert f"{newest.name} is truncated" in err
    run.result.unlink()
    for path in run.checkpoints.glob("*.safetensors"):
        path.write_bytes(b"")
    process = start("train", "--resume", str(run.path))
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("revedge: error: no checkpoint in")
    assert "remove that folder" in last


def test_two_trainings_in_one_folder_are_refused(make_run: MakeRun, start: Start) -> None:
    """The second says who holds the folder, with exit code 1."""
    run = make_run("shared", epochs=5000)
    process = start("train", "--resume", str(run.path))
    _wait(lambda: _newest(run) >= 1, process)
    second = start("train", "--resume", str(run.path))
    _, err = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 1
    assert f"another training (process {process.pid}) is running" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "digits", "--budget", "400MiB"], 2, "--out is missing"),
        (["--data", "digits", "--out", "a"], 2, "--budget is missing"),
        (["--budget", "1GiB", "--out", "a"], 2, "--data is missing"),
        (
            ["--data", "digits", "--budget", "lots", "--out", "a"],
            2,
            "size 'lots' is not understood",
        ),
        (["--data", "digits", "--budget", "900TiB", "--out", "a"], 1, "more than this machine has"),
        (["--data", "nothing", "--budget", "400MiB", "--out", "a"], 2, "nothing"),
        (["--data", "nmnist", "--data-dir", "no", "--budget", "400MiB", "--out", "a"], 2, "no"),
        (["--plan", "no.toml", "--out", "a"], 2, "no such plan file"),
        (["--plan", "old.toml", "--out", "a"], 1, "version = 7"),
        (
            ["--plan", "plan.toml", "--model", "vgg5", "--out", "a"],
            2,
            "--model does not go with --plan",
        ),
        (
            ["--plan", "plan.toml", "--budget", "399MiB", "--out", "a"],
            1,
            "predicted peak is 400.0 MiB",
        ),
        (["--plan", "plan.toml", "--out", "/proc/self/new"], 1, "/proc/self/new cannot be written"),
        (["--plan", "plan.toml", "--out", "plan.toml"], 1, "plan.toml cannot be written"),
        (["--plan", "plan.toml", "--out", "begun"], 2, "continue it with --resume begun"),
        (["--resume", "nowhere"], 2, "--resume nowhere does not exist"),
        (["--resume", "empty"], 2, "--resume empty holds no training"),
        (["--resume", "begun", "--epochs", "9"], 2, "--epochs does not go with --resume"),
    ],
)
def test_refusals_are_one_line_with_the_right_exit_code(
    tmp_path: Path, make_run: MakeRun, revedge_command, words: list[str], code: int, message: str
) -> None:
    """Each says what is wrong before anything starts; with --json the same stands in the last line of stdout."""
    make_run("begun")
    (tmp_path / "empty").mkdir()
    make_plan().save(tmp_path / "plan.toml")
    old = make_plan().to_toml().replace("version = 1", "version = 7")
    (tmp_path / "old.toml").write_text(old)
    done = revedge_command("train", *words, "--json")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == code
    assert not (tmp_path / "a").exists()  # a refused training leaves nothing behind
    assert not (tmp_path / "a" / "config.json").exists()


def test_help_shows_an_example(revedge_command) -> None:
    """The options that scripts rely on stand there, and an example."""
    text = revedge_command("train", "--help").stdout
    options = "--data --data-dir --budget --epochs --seed --out --model --timesteps --resume --json"
    for option in options.split():
        assert option in text
    assert "revedge train --data digits --budget 400MiB" in text


def test_cuda_trains_with_the_same_loop(make_run: MakeRun, start: Start) -> None:
    """On a GPU the tiny training ends, and what torch reserves there counts."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    run = make_run("cuda", epochs=2, device="cuda", budget_bytes=8 << 30)
    assert _finish(start("train", "--resume", str(run.path), "--json"))["test_accuracy"] is not None


def test_cuda_without_a_gpu_is_one_line(make_run: MakeRun, start: Start) -> None:
    """Asked for a GPU that is not there, training stops with what to do."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    run = make_run("cuda", device="cuda")
    process = start("train", "--resume", str(run.path))
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "device 'cuda' is not there (torch sees no GPU); train with --device cpu" in err
