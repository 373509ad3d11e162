"""The supervisor: starts the trainer, watches it, writes down what happens, starts it again when it dies.

It imports neither torch nor numpy and stays below 25 MB, because its bytes count against the budget too.
The supervisor keeps nothing that a run needs: when it is killed the trainer ends with it, and `--resume` goes on.
"""

import dataclasses
import json
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revedge import allocator, child, errors
from revedge.devices import oom
from revedge.devices.atomic import replace_text
from revedge.devices.meter import PeakMeter, oom_kills
from revedge.devices.metrics_log import MetricsLog
from revedge.devices.progress import Progress
from revedge.devices.run_folder import RunFolder
from revedge.errors import BudgetError, RevedgeError
from revedge.planner.plan import Plan
from revedge.units import format_bytes

SAMPLE_S = 0.02
MEMORY_LINE_S = 1.0
MAX_RESTARTS = 5
_NEAR = 0.85  # of the budget: a crash there is taken for one of memory (libraries crash when malloc fails)
_EXIT_OUT_OF_MEMORY, _EXIT_STOPPED = 10, 11  # of trainer.py, which must not be imported here


@dataclass
class Outcome:
    """How a supervised training ended."""

    done: dict[str, Any] | None  # the trainer's last event, None if it was stopped
    stopped_by: int | None  # the signal
    step: int
    measured_peak_bytes: int
    wall_s: float
    restarts: int
    sessions: int
    plan: Plan


class Supervisor:
    """Runs the trainer of one run folder until it is done.

    Args:
        run: holds plan and settings, and is locked.
        lock: the lock's file descriptor; the trainer gets it too, so that the lock outlives this process.
        progress: what the user sees.
    """

    def __init__(self, run: RunFolder, lock: int, progress: Progress) -> None:
        self.run, self.lock, self.progress = run, lock, progress
        self.plan = Plan.load(run.plan)
        self.meter = PeakMeter()
        self.log = MetricsLog(run.metrics)
        self.restarts = self.step = 0
        self._began_s = time.monotonic()
        self._stop_signal: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._final: dict[str, Any] = {}
        self._memory_line_s = float("-inf")
        self._kernel_kills = 0

    def train(self) -> Outcome:
        """Train to the end, through restarts.

        Raises:
            RevedgeError: the trainer refused, or died too often; the last good checkpoint stays.
        """
        old = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            self._write({"event": "session", "restarts": 0})
            while True:
                code = self._run_trainer()
                if code == 0:
                    return self._outcome(self._final)
                if code == _EXIT_STOPPED or self._stop_signal is not None:
                    return self._outcome(None)
                self._prepare_restart(code)
        finally:
            self._kill()
            self.progress.close()
            for number, handler in old.items():
                signal.signal(number, handler)

    def _outcome(self, done: dict[str, Any] | None) -> Outcome:
        peak = max(self.meter.peak_bytes, self.log.peak_bytes)
        self._write({"event": "memory", "now_bytes": self.meter.now_bytes, "peak_bytes": peak})
        wall_s = self.log.offset_s + time.monotonic() - self._began_s
        sessions = self.log.sessions + 1
        return Outcome(
            done, self._stop_signal, self.step, peak, wall_s, self.restarts, sessions, self.plan
        )

    def _run_trainer(self) -> int:
        """Start one trainer, follow it to its end, and return its exit code (negative: a signal)."""
        self._final, self._kernel_kills = {}, oom_kills()
        reader, writer = os.pipe()
        words = ["--events", str(writer), "--parent", str(os.getpid())]
        command = child.command("revedge.devices.trainer", str(self.run.path.resolve()), *words)
        try:
            with open(self.run.log, "wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writer, self.lock),
                    env=child.environment(**allocator.preload()),
                )
        except OSError as error:
            os.close(reader)
            raise RevedgeError(f"the trainer cannot be started ({error})") from None
        finally:
            os.close(writer)
        try:
            self.meter.follow(self._process.pid)
            if self._stop_signal is not None:  # it came before there was a trainer to tell
                self._process.send_signal(signal.SIGTERM)
            self._follow(reader)
        finally:
            os.close(reader)
        return self._reap(self._process)

    def _follow(self, reader: int) -> None:
        """Read events and sample memory until the trainer's end of the pipe is closed."""
        poll, pending = select.poll(), b""
        poll.register(reader, select.POLLIN | select.POLLHUP)
        next_s = 0.0
        while True:
            wait_s = max(0.0, next_s - time.monotonic())
            if poll.poll(wait_s * 1000):
                data = os.read(reader, 65536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._on_event(json.loads(line))
            now_s = time.monotonic()
            if now_s >= next_s:
                next_s = now_s + SAMPLE_S
                self._sample(now_s)

    def _sample(self, now_s: float) -> None:
        now_bytes = self.meter.sample()
        self.progress.memory(now_bytes, self.meter.peak_bytes)
        if now_s - self._memory_line_s >= MEMORY_LINE_S:
            self._memory_line_s = now_s
            peak = self.meter.peak_bytes
            self._write({"event": "memory", "now_bytes": now_bytes, "peak_bytes": peak})

    def _reap(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait for the trainer; the kernel tells the true peak of its resident bytes."""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.meter.add_trainer_peak(usage.ru_maxrss * 1024)
        self.meter.unfollow()
        self._process = None
        return process.returncode

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        self.meter.device_bytes = max(event.get("device_bytes", 0), self.meter.device_bytes)
        if kind == "start":
            self.log.rewind(event["step"], event.pop("last_epoch", None))
        if kind in ("done", "error", "out_of_memory", "stopped"):
            self._final = event
        self.step = event.get("step", self.step)
        if kind != "checkpoint":
            self._write(event)
        self.progress.event(event)

    def _write(self, event: dict[str, Any]) -> None:
        failed_before = self.log.failed
        self.log.write(event, time.monotonic() - self._began_s)
        if self.log.failed and not failed_before:
            self.progress.say(f"warning: {self.log.failed}; training goes on without it")

    def _prepare_restart(self, code: int) -> None:
        """Decide what a trainer's death means; return if it is to be started again.

        Raises:
            RevedgeError: it is not.
        """
        if self._final.get("event") == "error":
            kind = getattr(errors, self._final["kind"], RevedgeError)
            raise kind(self._final["text"])
        # The allocation that failed is not in the peak, and its size is not known.
        near = self.meter.session_peak_bytes > self.plan.budget_bytes * _NEAR
        tail = log_tail(self.run.log)
        of_memory = code == _EXIT_OUT_OF_MEMORY or (
            code < 0
            and oom.died_of_memory(-code, tail, oom_kills() - self._kernel_kills, near_budget=near)
        )
        if not of_memory and code != -signal.SIGKILL:
            name = f"signal {-code}" if code < 0 else f"exit code {code}"
            last = tail.strip().rpartition("\n")[2][:200]
            raise RevedgeError(
                f"the trainer ended unexpectedly ({name}: {last}); see {self.run.log}, then continue with "
                f"revedge train --resume {self.run.path}"
            )
        if self.restarts >= MAX_RESTARTS:
            raise RevedgeError(
                f"the trainer died {self.restarts + 1} times (last: step {self.step}); free some memory, then "
                f"continue with revedge train --resume {self.run.path}"
            )
        self.restarts += 1
        if of_memory:
            self._step_down(self._final.get("text") or f"ended by signal {-code}")
        else:
            self._warn("the trainer was killed; it starts again from its last checkpoint")

    def _step_down(self, why: str) -> None:
        """Rewrite the plan with about half the micro-batch."""
        old = self.plan.micro_batch_size
        new = smaller_micro_batch(self.plan.batch_size, old)
        if new is None:
            raise BudgetError(
                f"out of memory at a micro-batch of 1 inside {format_bytes(self.plan.budget_bytes)} ({why}); give "
                "a larger --budget, fewer --timesteps or a smaller --model"
            )
        # Gradients are summed over the micro-batches now, so none can be used up in backward.
        self.plan = dataclasses.replace(self.plan, micro_batch_size=new, update_in_backward=False)
        try:
            replace_text(self.run.plan, self.plan.to_toml())
        except OSError as error:
            raise RevedgeError(f"{self.run.plan} cannot be written ({error.strerror})") from None
        self._warn(
            f"out of memory ({why}); micro-batch {old} -> {new}, again from the last checkpoint. "
            "Batch statistics are of the micro-batch, so the result differs from the first plan's"
        )

    def _warn(self, text: str) -> None:
        event = {"event": "warning", "text": text}
        self._write(event)
        self.progress.event(event)

    def _on_signal(self, number: int, _frame: object) -> None:
        """First time: ask the trainer for a clean checkpoint. Second time: end it at once."""
        again, self._stop_signal = self._stop_signal is not None, number
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if again else signal.SIGTERM)
            self._process.send_signal(signal.SIGCONT)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._reap(self._process)


def smaller_micro_batch(batch_size: int, micro_batch_size: int) -> int | None:
    """Return the largest divisor of `batch_size` that is at most half of `micro_batch_size`; None at 1."""
    for size in range(micro_batch_size // 2, 0, -1):
        if batch_size % size == 0:
            return size
    return None


def log_tail(path: Path, size_bytes: int = 4096) -> str:
    """Return the end of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size_bytes))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
