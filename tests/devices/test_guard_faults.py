"""Faults put into a real training: what the guard makes of each, and that no number changes by it."""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from revedge.devices import guard, meter, pressure, recovery, supervisor
from revedge.devices.metrics_log import read_metrics
from revedge.devices.progress import Progress
from revedge.devices.run_folder import RunFolder
from revedge.devices.supervisor import Outcome, Supervisor
from revedge.errors import BudgetError
from revedge.planner.cost import Prediction
from revedge.planner.descent import descend, dump
from revedge.planner.plan import Plan
from revedge.planner.setting import Setting

from .conftest import MakeRun

# The trainer, in which the 18th micro-batch of a session fails in the middle of its backward pass, once.
_FAILING = """
import os, sys, torch
from revedge.devices import loop, trainer
marker, calls, whole = sys.argv.pop(1), [0], loop.TrainingLoop._micro_batch
def _micro_batch(self, *args):
    calls[0] += 1
    if calls[0] == 18 and not os.path.exists(marker):
        open(marker, "w").close()
        weight = next(iter(self.model.parameters()))
        def fail(gradient):
            torch.empty(1 << 60)
        weight.register_hook(fail)
    return whole(self, *args)
loop.TrainingLoop._micro_batch = _micro_batch
sys.exit(trainer.main(sys.argv[1:]))
"""


def _predict(setting: Setting) -> Prediction:
    """Made up, falling along the ladder."""
    kept = {"store": 5, "keep-conv": 4, "keep-spikes": 3, "reverse": 2}[str(setting.strategy)]
    return Prediction(parts={"base_bytes": (kept * setting.micro_batch_size) << 20})


@pytest.fixture
def tiny_run(make_run: MakeRun) -> Callable[..., RunFolder]:
    """Return a function that begins the tiny training with a ladder; checkpoints come after every epoch of 6 steps."""

    def make(name: str) -> RunFolder:
        run = make_run(
            name, checkpoint_every_s=1000.0, epochs=14, strategy="store", budget_bytes=8 << 30
        )
        run.ladder.write_text(dump(descend(Plan.load(run.plan), _predict)))
        return run

    return make


@pytest.fixture(scope="module")
def kept_digest() -> list[str]:
    """Return where the first whole training leaves the digest of its weights."""
    return []


def _train(run: RunFolder) -> tuple[Outcome, list[dict]]:
    lock = run.lock()
    try:
        outcome = Supervisor(run, lock, Progress(8 << 30)).train()
    finally:
        os.close(lock)
    return outcome, read_metrics(run.metrics)


def _digest(run: RunFolder) -> str:
    return hashlib.sha256(run.model.read_bytes()).hexdigest()


@pytest.fixture
def whole(tiny_run: Callable[..., RunFolder], kept_digest: list[str]) -> str:
    """Return the digest of the weights that an undisturbed training gives."""
    if not kept_digest:
        run = tiny_run("whole")
        outcome, lines = _train(run)
        assert outcome.done is not None
        assert outcome.restarts == 0
        assert not any(line["event"] in ("rung", "paused") for line in lines)
        kept_digest.append(_digest(run))
    return kept_digest[0]


def _steps(run: RunFolder) -> int:
    return max((int(p.stem[5:]) for p in run.checkpoints.glob("step-*.json")), default=0)


def test_an_allocation_fails_in_the_middle_of_a_step(
    tiny_run: Callable[..., RunFolder], whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rung lower from the last checkpoint; the half-done step leaves no trace, the weights are the same bits."""
    run, marker = tiny_run("failing"), str(tmp_path / "marker")
    monkeypatch.setattr(
        supervisor.child,
        "command",
        lambda module, *words: [sys.executable, "-c", _FAILING, marker, *words],
    )
    outcome, lines = _train(run)
    (rung,) = [line for line in lines if line["event"] == "rung"]
    assert "RuntimeError" in rung["why"]
    assert rung["rung"] == "keep-conv, micro-batch 4"
    assert rung["predicted_peak_bytes"] == outcome.plan.predicted_peak_bytes == 16 << 20
    assert Plan.load(run.plan) == outcome.plan
    assert _digest(run) == whole


class _Kill:
    """Kills the trainer of a run once, from inside the supervisor's samples, after some steps."""

    def __init__(self, run: RunFolder, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.number, self.done = run, number, False
        self.pressed = False  # true for the last sample before
        sample = guard.Guard.sample

        def sampled(watched: guard.Guard) -> int:
            if not self.done and watched._pid is not None and _steps(run) >= 3:
                self.pressed = True
                watched._samples = 0  # it looks at the machine now
                sample(watched)
                self.pressed, self.done = False, True
                os.kill(watched._pid, number)
            return sample(watched)

        monkeypatch.setattr(guard.Guard, "sample", sampled)


def test_the_kernel_kills_for_memory(
    tiny_run: Callable[..., RunFolder], whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL and a grown counter in /proc/vmstat: a rung lower. Without the counter: the same plan again."""
    run = tiny_run("killed")
    kill = _Kill(run, signal.SIGKILL, monkeypatch)
    monkeypatch.setattr(supervisor, "oom_kills", lambda: 7 + kill.done)
    outcome, lines = _train(run)
    assert [line["rung"] for line in lines if line["event"] == "rung"] == [
        "keep-conv, micro-batch 4"
    ]
    assert _digest(run) == whole
    assert outcome.restarts == 1


def test_a_crash_near_the_budget(
    tiny_run: Callable[..., RunFolder], whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSEGV where memory is nearly used up is taken for the want of it (elsewhere it is an error)."""
    run = tiny_run("crashed")
    _Kill(run, signal.SIGSEGV, monkeypatch)
    monkeypatch.setattr(supervisor, "_NEAR", 0.0)
    _, lines = _train(run)
    (rung,) = [line for line in lines if line["event"] == "rung"]
    assert rung["why"] == "ended by signal 11"
    assert _digest(run) == whole


def test_swap_over_the_budget_in_a_real_training(
    tiny_run: Callable[..., RunFolder], whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is given up at the order, and the next rung goes on from the last checkpoint."""
    run = tiny_run("swapped")
    monkeypatch.setattr(
        meter,
        "swap_bytes",
        lambda pid=None: 16 << 30 if _steps(run) >= 3 and not _has_rung(run) else 0,
    )
    outcome, lines = _train(run)
    (rung,) = [line for line in lines if line["event"] == "rung"]
    assert "in swap" in rung["why"]
    assert outcome.measured_peak_bytes > 16 << 30  # what was over is not hidden
    assert _digest(run) == whole


def test_a_trainer_that_does_not_give_up_is_killed(
    tiny_run: Callable[..., RunFolder], whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs over the budget ends all the same, for the same reason, and the next rung goes on."""
    run, stopped = tiny_run("hanging"), list[int]()

    def swap_bytes(pid: int | None = None) -> int:
        if pid is None or _steps(run) < 3 or _has_rung(run):
            return 0
        if not stopped:
            stopped.append(pid)
            os.kill(pid, signal.SIGSTOP)
        return 16 << 30

    monkeypatch.setattr(meter, "swap_bytes", swap_bytes)
    monkeypatch.setattr(guard, "_OBEYS_S", 0.2)
    outcome, lines = _train(run)
    (rung,) = [line for line in lines if line["event"] == "rung"]
    assert "in swap" in rung["why"]
    assert outcome.restarts == 1
    assert _digest(run) == whole


def test_killed_while_others_hold_the_memory(
    tiny_run: Callable[..., RunFolder], whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that kills before the kernel must leaves no count: the same plan goes on once there is room."""
    run = tiny_run("killed early")
    kill = _Kill(run, signal.SIGKILL, monkeypatch)
    until = list[float]()

    def available() -> int:
        if kill.done and not until:
            until.append(time.monotonic() + 0.5)
        short = kill.pressed or (bool(until) and time.monotonic() < until[0])
        return 0 if short else 1 << 50

    monkeypatch.setattr(meter, "available_bytes", available)
    outcome, lines = _train(run)
    said = [line["text"] for line in lines if line["event"] == "warning"]
    assert any("waiting for memory" in text for text in said)
    assert any("memory is back (ended by signal 9)" in text for text in said)
    assert not _has_rung(run)
    assert outcome.restarts == 1
    assert _digest(run) == whole


def _has_rung(run: RunFolder) -> bool:
    return any(line["event"] == "rung" for line in read_metrics(run.metrics))


def test_memory_falls_and_comes_back_in_a_real_training(
    tiny_run: Callable[..., RunFolder],
    whole: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Paused at the end of a step, with a checkpoint and a message; then on, in the same process, to the same bits."""
    run, since = tiny_run("pressed"), list[float]()

    def available() -> int:
        if _steps(run) < 3:
            return 1 << 50
        since.append(time.monotonic())
        return 0 if since[-1] - since[0] < 1.0 else 1 << 50

    monkeypatch.setattr(meter, "available_bytes", available)
    monkeypatch.setattr(pressure, "GIVING_S", 0.05)
    outcome, lines = _train(run)
    events = [line["event"] for line in lines]
    assert events.count("paused") == events.count("resumed") == 1
    assert outcome.restarts == 0
    assert "paused: other programs left the machine 0 B" in capfd.readouterr().err
    assert _digest(run) == whole


def test_memory_stays_away(
    tiny_run: Callable[..., RunFolder], whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the limit the trainer ends with a checkpoint; with no room for any rung that is the end, and can go on."""
    run, left = tiny_run("starved"), [0]
    monkeypatch.setattr(meter, "available_bytes", lambda: left[0] if _steps(run) >= 3 else 1 << 50)
    monkeypatch.setattr(pressure, "GIVING_S", 0.05)
    monkeypatch.setattr(guard.Pressure.__init__, "__defaults__", (0.3,))
    monkeypatch.setattr(recovery.Recovery.__init__, "__defaults__", (0.3,))
    with pytest.raises(BudgetError, match=r"the machine has room for 0 B.*--resume"):
        _train(run)
    stopped = _steps(run)
    (paused,) = [line for line in read_metrics(run.metrics) if line["event"] == "paused"]
    assert paused["step"] == stopped >= 3
    left[0] = 1 << 50
    outcome, lines = _train(run)
    assert outcome.done is not None
    starts = [line["step"] for line in lines if line["event"] == "start"]
    assert starts[-1] == stopped
    assert _digest(run) == whole
