"""metrics.jsonl: one JSON object a line, in step order also after a restart.

Lines of steps that a restart repeats are dropped first, so every step stands there once. Losing a line never loses a
run: a full disk is reported once and training goes on.
"""

import json
from pathlib import Path
from typing import Any

from revedge.devices.atomic import replace_file


class MetricsLog:
    """Appends to metrics.jsonl; keeps `time_s` growing over sessions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed: str | None = None
        lines = read_metrics(path)
        self.offset_s = max((float(line.get("time_s", 0.0)) for line in lines), default=0.0)
        self.sessions = sum(line.get("event") == "session" for line in lines)
        self.peak_bytes = max((int(line.get("peak_bytes", 0)) for line in lines), default=0)

    def write(self, event: dict[str, Any], session_s: float) -> None:
        """Append one event with its time since the run began, in seconds."""
        line = json.dumps({**event, "time_s": round(self.offset_s + session_s, 3)})
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            self.failed = self.failed or f"{self.path} cannot be written ({error.strerror})"

    def rewind(self, step: int, last_epoch: dict[str, Any] | None = None) -> None:
        """Drop what was written about steps after `step`, and a half-written last line.

        `last_epoch` is the epoch event that the checkpoint of `step` remembers: its line is missing
        if everything was killed between that checkpoint and the line.
        """
        lines = read_metrics(self.path)
        kept = [line for line in lines if int(line.get("step", 0)) <= step]
        if last_epoch is not None:
            epochs = [line["epoch"] for line in kept if line.get("event") == "epoch"]
            if last_epoch["epoch"] not in epochs:
                kept.append({"event": "epoch", **last_epoch, "time_s": self.offset_s})
        try:
            replace_file(self.path, [(json.dumps(line) + "\n").encode() for line in kept])
        except OSError as error:
            self.failed = self.failed or f"{self.path} cannot be written ({error.strerror})"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the readable lines of metrics.jsonl; a half-written one is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines
