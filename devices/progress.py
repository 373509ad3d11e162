"""What a person sees while training: a bar, the rate, the time left, memory against the budget. Goes to stderr."""

import sys
import time
from typing import Any, TextIO

from revedge.units import format_bytes, format_clock

_BAR_CELLS = 24


class Progress:
    """Shows the events of a training: one changing line on a terminal, one line per epoch elsewhere.

    Args:
        budget_bytes: what memory is held against.
        stream: where to write; stderr by default.
    """

    def __init__(self, budget_bytes: int, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.budget_bytes = budget_bytes
        self.live = self.stream.isatty()
        self.total_steps = self.step = self.first_step = 0
        self.loss = self.test_accuracy = float("nan")
        self.rung = ""  # how memory is saved now
        self.paused = False
        self._began_s = self._drawn_s = 0.0

    def event(self, event: dict[str, Any]) -> None:
        """Take note of an event of the trainer and show what is worth a line."""
        kind = event["event"]
        if kind == "start":
            self.total_steps, self.step = event["total_steps"], event["step"]
            self.first_step, self._began_s = self.step, time.monotonic()
            self.rung, self.paused = event.get("rung", ""), False
            if self.step:
                self.say(f"resumed at step {self.step} of {self.total_steps}")
        elif kind == "step":
            self.step, self.loss = event["step"], event["loss"]
        elif kind == "epoch":
            self.step, self.test_accuracy = event["step"], event["test_accuracy"]
            self.say(
                f"epoch {event['epoch']:3d}  loss {event['train_loss']:.4f}  "
                f"train {100 * event['train_accuracy']:5.1f} %  test {100 * event['test_accuracy']:5.1f} %"
            )
        elif kind == "warning":
            self.say(f"warning: {event['text']}")
        elif kind == "rung":
            self.rung = event["rung"]
            self.say(
                f"warning: out of memory ({event['why']}); {event['change']}, predicted peak "
                f"{format_bytes(event['predicted_peak_bytes'])} of {format_bytes(self.budget_bytes)}, again from the "
                f"last checkpoint; {event['effect']}"
            )
        elif kind in ("paused", "resumed"):
            self.paused = kind == "paused"

    def memory(self, now_bytes: int, peak_bytes: int) -> None:
        """Redraw the changing line (at most ten times a second)."""
        now = time.monotonic()
        if not self.live or now - self._drawn_s < 0.1:
            return
        self._drawn_s = now
        self.stream.write("\r\033[K" + self.line(now_bytes, peak_bytes, now))
        self.stream.flush()

    def line(self, now_bytes: int, peak_bytes: int, now_s: float) -> str:
        """Return the changing line."""
        memory = (
            f"{format_bytes(now_bytes)} (peak {format_bytes(peak_bytes)}, "
            f"{100 * peak_bytes / self.budget_bytes:.0f} % of {format_bytes(self.budget_bytes)})"
        )
        if not self.total_steps:
            return f"starting  {memory}"
        share = self.step / self.total_steps
        full = int(share * _BAR_CELLS)
        text = f"[{'#' * full}{'.' * (_BAR_CELLS - full)}] {self.step}/{self.total_steps}"
        done, spent_s = self.step - self.first_step, now_s - self._began_s
        if self.rung:
            text += f"  {self.rung}"
        if self.paused:
            text += "  paused"
        elif done > 0 and spent_s > 0:
            left_s = (self.total_steps - self.step) * spent_s / done
            text += (
                f"  {done / spent_s:.2f} steps/s  {format_clock(left_s)} left  loss {self.loss:.3f}"
            )
        return f"{text}  {memory}"

    def say(self, text: str) -> None:
        """Print one line that stays."""
        self.stream.write(("\r\033[K" if self.live else "") + text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave the terminal on a fresh line."""
        if self.live:
            self.stream.write("\r\033[K")
            self.stream.flush()
