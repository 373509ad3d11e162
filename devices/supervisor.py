"""The supervisor: starts the trainer, watches it, writes down what happens, starts it again when it dies.

It imports neither torch nor numpy and stays below 25 MB, because its bytes count against the budget too.
guard.py watches memory, recovery.py finds what to go on with when there was too little.
The supervisor keeps nothing that a run needs: when it is killed the trainer ends with it, and `--resume` goes on.
"""

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
from revedge.devices.guard import SAMPLE_S, Guard
from revedge.devices.meter import oom_kills
from revedge.devices.metrics_log import MetricsLog
from revedge.devices.progress import Progress
from revedge.devices.recovery import Recovery
from revedge.devices.run_folder import RunFolder
from revedge.errors import RevedgeError
from revedge.planner.descent import describe
from revedge.planner.plan import Plan

MEMORY_LINE_S = 1.0
MAX_RESTARTS = 5  # with the same plan; the ladder's end is the other limit
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
        self.guard = Guard(self.plan.budget_bytes, self._say)
        self.recovery = Recovery(run, self._say, lambda: self._stop_signal is not None)
        self.log = MetricsLog(run.metrics)
        self.restarts = self.step = self._same_plan = 0
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
                if self._stop_signal is not None:
                    return self._outcome(None)
        finally:
            self._kill()
            self.guard.close()
            self.progress.close()
            for number, handler in old.items():
                signal.signal(number, handler)

    def _outcome(self, done: dict[str, Any] | None) -> Outcome:
        meter = self.guard.meter
        peak = max(meter.peak_bytes, self.log.peak_bytes)
        self._write({"event": "memory", "now_bytes": meter.now_bytes, "peak_bytes": peak})
        wall_s = self.log.offset_s + time.monotonic() - self._began_s
        sessions = self.log.sessions + 1
        return Outcome(
            done, self._stop_signal, self.step, peak, wall_s, self.restarts, sessions, self.plan
        )

    def _run_trainer(self) -> int:
        """Start one trainer, follow it to its end, and return its exit code (negative: a signal)."""
        self._final, self._kernel_kills = {}, oom_kills()
        reader, writer = os.pipe()
        orders = self.guard.orders.handle
        words = ["--events", str(writer), "--orders", str(orders), "--parent", str(os.getpid())]
        command = child.command("revedge.devices.trainer", str(self.run.path.resolve()), *words)
        try:
            with open(self.run.log, "wb") as log, child.same_addresses():
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writer, orders, self.lock),
                    env=child.environment(**allocator.preload()),
                )
        except OSError as error:
            os.close(reader)
            raise RevedgeError(f"the trainer cannot be started ({error})") from None
        finally:
            os.close(writer)
        try:
            self.guard.follow(self._process.pid, self.plan.predicted_peak_bytes)
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
        now_bytes = self.guard.sample()
        peak = self.guard.meter.peak_bytes
        self.progress.memory(now_bytes, peak)
        if now_s - self._memory_line_s >= MEMORY_LINE_S:
            self._memory_line_s = now_s
            self._write({"event": "memory", "now_bytes": now_bytes, "peak_bytes": peak})

    def _reap(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait for the trainer; the kernel tells the true peak of its resident bytes."""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.guard.unfollow(usage.ru_maxrss * 1024)
        self._process = None
        return process.returncode

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        meter = self.guard.meter
        meter.device_bytes = max(event.get("device_bytes", 0), meter.device_bytes)
        if kind == "start":
            self.log.rewind(event["step"], event.pop("last_epoch", None))
            event["rung"] = describe(self.plan)
            if self._process is not None:
                self.guard.started(self._process.pid)
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
        near = self.guard.meter.session_peak_bytes > self.plan.budget_bytes * _NEAR
        tail = log_tail(self.run.log)
        kills = oom_kills() - self._kernel_kills
        # Programs that kill before the kernel must (earlyoom, systemd-oomd) leave no count there.
        others = self.guard.others or (code == -signal.SIGKILL and self.guard.pressed)
        if self.guard.reason or others:
            of_memory = True
        elif code < 0:
            of_memory = oom.died_of_memory(-code, tail, kills, near_budget=near)
        else:
            of_memory = code == _EXIT_OUT_OF_MEMORY or oom.classify(tail)
        if not of_memory and code != -signal.SIGKILL:
            name = f"signal {-code}" if code < 0 else f"exit code {code}"
            last = tail.strip().rpartition("\n")[2][:200]
            raise RevedgeError(
                f"the trainer ended unexpectedly ({name}: {last}); see {self.run.log}, then continue with "
                f"revedge train --resume {self.run.path}"
            )
        self.restarts += 1
        if of_memory:
            why = self.guard.reason or self._final.get("text") or f"ended by signal {-code}"
            self._step_down(why, may_stay=others)
            return
        self._count_same_plan()
        self._say("the trainer was killed; it starts again from its last checkpoint")

    def _step_down(self, why: str, *, may_stay: bool) -> None:
        """Go on with the next rung, or with the same one if others had taken the memory and have given it back."""
        old = self.plan
        rung = self.recovery.next(old, why, may_stay=may_stay)
        if rung is None:
            return
        self.plan = rung.plan
        if rung.plan == old:
            self._count_same_plan()
            self._say(f"memory is back ({why}); training goes on from the last checkpoint")
            return
        self._same_plan = 0
        event = {
            "event": "rung",
            "change": f"{describe(old)} -> {describe(rung.plan)}",
            "effect": rung.effect,
            "why": why,
            "rung": describe(rung.plan),
            "predicted_peak_bytes": rung.plan.predicted_peak_bytes,
        }
        self._write(event)
        self.progress.event(event)

    def _count_same_plan(self) -> None:
        self._same_plan += 1
        if self._same_plan > MAX_RESTARTS:
            raise RevedgeError(
                f"the trainer died {self._same_plan} times (last: step {self.step}); free some memory, then "
                f"continue with revedge train --resume {self.run.path}"
            )

    def _say(self, text: str) -> None:
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


def log_tail(path: Path, size_bytes: int = 4096) -> str:
    """Return the end of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size_bytes))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
