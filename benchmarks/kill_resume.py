"""Kills a training with SIGKILL at random moments, resumes it, and compares the result with the uninterrupted one.

    python benchmarks/kill_resume.py [--kills 20] [--epochs 2] [--seed 0] [--budget 400MiB]

Half of the kills hit the trainer, half the supervisor, spread evenly over the run with a random part (start-up and
checkpoint writing included). After each kill of a supervisor the run is resumed with `revedge train --resume`; a
killed trainer is started again by its supervisor. Every kill has a run folder of its own. Exit code 1 if any final
model.safetensors differs in a bit from the uninterrupted run's, if a checkpoint could not be read, or if a process
was left over.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 900.0
COMMAND = [sys.executable, "-m", "revedge.cli.main", "train"]


@dataclass
class Row:
    """One killed and resumed training."""

    victim: str
    wanted_s: float
    killed_s: float | None
    step: int
    same: bool
    warnings: int
    left_over: bool
    note: str

    @property
    def good(self) -> bool:
        """Whether nothing was lost."""
        return self.same and not self.left_over and "damaged" not in self.note


def main() -> int:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", default="400MiB")
    parser.add_argument("--checkpoint-every-s", default="0.5")
    parser.add_argument("--timesteps", default="4")
    args = parser.parse_args()
    begin = ["--data", "digits", "--budget", args.budget, "--epochs", str(args.epochs)]
    begin += ["--seed", "0", "--timesteps", args.timesteps]
    begin += ["--checkpoint-every-s", args.checkpoint_every_s]
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="revedge-kill-") as name:
        root = Path(name)
        train(begin, root / "first")  # data and predictions are cached from here on
        began_s = time.monotonic()
        train(begin, root / "whole")
        whole_s = time.monotonic() - began_s
        reference = digest(root / "whole")
        if digest(root / "first") != reference:
            print("two uninterrupted runs differ: nothing to compare with")
            return 1
        print(f"uninterrupted: {whole_s:.1f} s, model.safetensors sha256 {reference[:16]}")
        print(f"{'kill':>4} {'victim':<10} {'at s':>6} {'step':>5} {'warnings':>8} same bits")
        rows = []
        for index in range(args.kills):
            victim = ("trainer", "supervisor")[index % 2]
            at_s = whole_s * (index + rng.random()) / args.kills
            row = kill_one(begin, root / f"kill{index}", victim, at_s, reference)
            rows.append(row)
            at = "ended" if row.killed_s is None else f"{row.killed_s:.2f}"
            print(
                f"{index + 1:4d} {row.victim:<10} {at:>6} {row.step:5d} {row.warnings:8d} "
                f"{'yes' if row.same else 'NO'} {row.note}",
                flush=True,
            )
            shutil.rmtree(root / f"kill{index}", ignore_errors=True)
    good = sum(row.good for row in rows)
    hit = sum(row.killed_s is not None for row in rows)
    print(f"{good} of {len(rows)} runs end with the same bits, {hit} of them were really killed")
    print(json.dumps({"runs": len(rows), "identical": good, "killed": hit, "sha256": reference}))
    return 0 if good == len(rows) and hit >= len(rows) * 3 // 4 else 1


def kill_one(begin: list[str], out: Path, victim: str, at_s: float, reference: str) -> Row:
    """Start a training, kill one of its processes after `at_s` seconds, and bring it to its end."""
    process = start([*begin, "--out", str(out)])
    began_s = time.monotonic()
    killed_s: float | None = None
    trainer: int | None = None
    while process.poll() is None and killed_s is None:
        trainer = trainer_of(process.pid) or trainer
        if time.monotonic() - began_s >= at_s and (victim == "supervisor" or trainer):
            pid = process.pid if victim == "supervisor" else trainer_of(process.pid)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                killed_s = time.monotonic() - began_s
        time.sleep(0.002)
    step = newest_step(out)
    left_over = False
    notes = []
    if victim == "supervisor" and killed_s is not None:
        process.communicate(timeout=PATIENCE_S)
        left_over = trainer is not None and not ends(trainer)
        notes += ["trainer left over"] if left_over else []
        begun = (out / "config.json").exists()
        notes += [] if begun else ["before the run had begun"]
        process = start(["--resume", str(out)] if begun else [*begin, "--out", str(out)])
    _, err = process.communicate(timeout=PATIENCE_S)
    if process.returncode:
        notes.append(f"exit code {process.returncode}: {err.strip().splitlines()[-1:]}")
    warnings = [line for line in err.splitlines() if line.startswith("warning")]
    notes += [line for line in warnings if "damaged" in line or "truncated" in line]
    same = process.returncode == 0 and digest(out) == reference
    return Row(victim, at_s, killed_s, step, same, len(warnings), left_over, "; ".join(notes))


def start(words: list[str]) -> "subprocess.Popen[str]":
    """Start `revedge train` in a session of its own."""
    return subprocess.Popen(
        [*COMMAND, *words, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def train(begin: list[str], out: Path) -> None:
    """Train without interruption."""
    process = start([*begin, "--out", str(out)])
    _, err = process.communicate(timeout=PATIENCE_S)
    if process.returncode:
        sys.exit(f"the uninterrupted training failed:\n{err}")


def digest(run: Path) -> str:
    """Return the SHA-256 of the trained network, "" if there is none."""
    try:
        return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    except OSError:
        return ""


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max((int(path.stem[5:]) for path in run.glob("checkpoints/step-*.json")), default=0)


def trainer_of(supervisor: int) -> int | None:
    """Return the process id of a supervisor's trainer."""
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        for child in children:
            if b"revedge.devices.trainer" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    except OSError:
        pass
    return None


def ends(pid: int, patience_s: float = 10.0) -> bool:
    """Return whether a process ends within some seconds."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


if __name__ == "__main__":
    sys.exit(main())
