"""The folder of one training, and the lock that keeps it to one training at a time.

plan.toml           what is trained and why it fits
planning.json       what else was possible, for the report (where the planner chose)
ladder.json         what can be done should it not fit after all (planner/descent.py)
config.json         seed and the other settings of the run
metrics.jsonl       one JSON object a line: steps, epochs, memory, restarts
checkpoints/        see checkpoint.py
trainer.log         what the trainer wrote to stderr
model.safetensors   the trained network, model.json its description (written at the end)
result.json         the outcome, as `revedge train --json` prints it
progress.png        accuracy and memory over time
report.html         the plan, the alternatives, and what happened
exact/              the finish, a run folder of its own (finish.py)
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revedge.devices.atomic import replace_text
from revedge.errors import RevedgeError, UsageError

VERSION = 1


@dataclass(frozen=True)
class RunSettings:
    """What a run needs besides its plan.

    Args:
        cache: folder of the frame cache (`revedge.data.FrameCache.open`).
        seed: of weights, order, dropout and augmentation.
        checkpoint_every_s: seconds between two checkpoints inside an epoch (0: after every step).
        finish: "exact" if the training ends on the exact grid (finish.py), else "".
        start: folder of the run whose network a finish begins from, relative to its own; "" for a training.
    """

    cache: str
    seed: int
    checkpoint_every_s: float = 5.0
    finish: str = ""
    start: str = ""

    def to_json(self) -> str:
        """Return the text of config.json."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "RunSettings":
        """Read config.json; `source` names it in errors.

        Raises:
            RevedgeError: it is damaged, or of another version.
        """
        try:
            values = json.loads(text)
            version = values.pop("version")
            if version != VERSION:
                raise RevedgeError(
                    f"{source} is of run version {version!r}, this revedge reads {VERSION}; "
                    "resume it with the revedge that began it"
                )
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise RevedgeError(
                f"{source} is damaged; begin again with another --out folder"
            ) from None


class RunFolder:
    """Paths inside one run folder, and its small files."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.plan = self.path / "plan.toml"
        self.ladder = self.path / "ladder.json"
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "trainer.log"
        self.model = self.path / "model.safetensors"
        self.model_config = self.path / "model.json"
        self.result = self.path / "result.json"
        self.picture = self.path / "progress.png"
        self.planning = self.path / "planning.json"
        self.report = self.path / "report.html"
        self._lock_file = self.path / "lock"

    @property
    def begun(self) -> bool:
        """Whether a training was begun here (its settings are written last)."""
        return self.config.is_file()

    def make(self) -> None:
        """Make the folder and check that files can be written in it.

        Raises:
            RevedgeError: it cannot be written.
        """
        probe = self.path / ".writable"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise RevedgeError(
                f"--out {self.path} cannot be written ({error.strerror}); choose a folder that you can write"
            ) from None

    def require_begun(self, option: str = "--resume") -> None:
        """Raise UsageError, which names ``option``, unless there is a training."""
        if not self.begun:
            what = "holds no training" if self.path.is_dir() else "does not exist"
            raise UsageError(
                f"{option} {self.path} {what}; begin one with revedge train --out {self.path}"
            )

    def settings(self) -> RunSettings:
        """Read config.json.

        Raises:
            RevedgeError: it cannot be read, is damaged, or is of another version.
        """
        try:
            return RunSettings.from_json(self.config.read_text(), str(self.config))
        except OSError as error:
            raise RevedgeError(f"{self.config} cannot be read ({error.strerror})") from None

    def begin(
        self,
        plan_text: str,
        settings: RunSettings,
        planning_text: str | None = None,
        ladder_text: str | None = None,
    ) -> None:
        """Write plan, ladder (None: leave it) and settings; from now on the run can be resumed.

        Raises:
            RevedgeError: the folder cannot be written to.
        """
        try:
            if planning_text is not None:
                replace_text(self.planning, planning_text)
            replace_text(self.plan, plan_text)
            if ladder_text is not None:
                replace_text(self.ladder, ladder_text)
            replace_text(self.config, settings.to_json())
        except OSError as error:
            raise RevedgeError(
                f"--out {self.path} cannot be written ({error.strerror}); choose another folder"
            ) from None

    def discard_unbegun(self) -> None:
        """Take the folder away again if no training has begun in it and nothing else lies there."""
        if self.begun:
            return
        try:
            self._lock_file.unlink(missing_ok=True)
            self.path.rmdir()
        except OSError:  # something of the user's is in it
            return

    def read_result(self) -> dict[str, Any] | None:
        """Return result.json, None if the run has not ended (or the file is damaged)."""
        try:
            value = json.loads(self.result.read_text())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) and self.model.is_file() else None

    def lock(self, wait_s: float = 3.0) -> int:
        """Take the lock and return its file descriptor; it is held until every process that has it has ended.

        A trainer whose supervisor was killed ends a moment later, so the lock is waited for a little.

        Raises:
            RevedgeError: another training runs in this folder.
        """
        handle = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "?"
                    os.close(handle)
                    raise RevedgeError(
                        f"another training (process {holder}) is running in {self.path}; "
                        "wait for it, or choose another --out folder"
                    ) from None
                time.sleep(0.05)
        with contextlib.suppress(OSError):  # a full disk must not stop a run from being resumed
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        return handle
