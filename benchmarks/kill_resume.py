"""Kills a training with SIGKILL at random moments, resumes it, and compares the result with the uninterrupted one.

    python benchmarks/kill_resume.py [--trainer 50] [--supervisor 20] [--epochs 1] [--seed 0] [--report FILE.md]

The moments are spread evenly over the run with a random part: start-up, steps, evaluation and the writing of
checkpoints, of which there is one every half second. After each kill of a supervisor the run is resumed with
`revedge train --resume` (or begun again, if there is nothing to resume yet); a killed trainer is started again by its
supervisor. Every kill has a run folder of its own; a run that ended before its moment is repeated with an earlier one.
Exit code 1 if any final model.safetensors differs in a bit from the uninterrupted run's, if a checkpoint could not be
read, or if a process was left over.
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

from processes import trainer_of
from report import command_line, machine, markdown_table, write

PATIENCE_S = 900.0
HEADER = ("kill", "victim", "at s", "last checkpoint", "warnings", "same bits", "note")
COMMAND = [sys.executable, "-m", "revedge.cli.main", "train"]


@dataclass
class Row:
    """One killed and resumed training."""

    victim: str
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

    def cells(self, number: int) -> list[str]:
        """Return the row of the table."""
        at = "ended" if self.killed_s is None else f"{self.killed_s:.2f}"
        same = "yes" if self.same else "NO"
        return [str(number), self.victim, at, str(self.step), str(self.warnings), same, self.note]


def main() -> int:
    """Run everything, print the table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trainer", type=int, default=50, help="kills of the trainer")
    parser.add_argument("--supervisor", type=int, default=20, help="kills of the supervisor")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", default="400MiB")
    parser.add_argument("--checkpoint-every-s", default="0.5")
    parser.add_argument("--timesteps", default="4")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    about = machine()
    begin = ["--data", "digits", "--budget", args.budget, "--epochs", str(args.epochs)]
    begin += ["--seed", "0", "--timesteps", args.timesteps]
    begin += ["--checkpoint-every-s", args.checkpoint_every_s]
    rng, rows = random.Random(args.seed), list[Row]()
    with tempfile.TemporaryDirectory(prefix="revedge-kill-") as name:
        root = Path(name)
        train(begin, root / "first")  # data and predictions are cached from here on
        reference, whole_s = digest(root / "first"), float("inf")
        for again in ("second", "third"):
            began_s = time.monotonic()
            train(begin, root / again)
            whole_s = min(whole_s, time.monotonic() - began_s)
            if digest(root / again) != reference:
                print("two uninterrupted runs differ: nothing to compare with")
                return 1
        print(f"uninterrupted: {whole_s:.1f} s, model.safetensors sha256 {reference[:16]}")
        print("  ".join(HEADER))
        for victim, kills in (("trainer", args.trainer), ("supervisor", args.supervisor)):
            for index in range(kills):
                at_s = whole_s * (index + rng.random()) / kills
                row = kill_one(begin, root / "run", victim, at_s, reference)
                while row.killed_s is None and row.good:  # it was faster than the others
                    at_s *= 0.9
                    row = kill_one(begin, root / "run", victim, at_s, reference)
                rows.append(row)
                print("  ".join(row.cells(len(rows))), flush=True)
    good = sum(row.good for row in rows)
    hit = sum(row.killed_s is not None for row in rows)
    said = f"{good} of {len(rows)} runs end with the same bits; {hit} of them were really killed"
    print(said)
    if args.report is not None:
        shape = (
            f"digits, T = {args.timesteps}, {args.epochs} epoch(s), a checkpoint every "
            f"{args.checkpoint_every_s} s; uninterrupted {whole_s:.1f} s."
        )
        table = markdown_table(HEADER, [row.cells(place + 1) for place, row in enumerate(rows)])
        parts = [shape, f"**{said}.** No process was left over.", table]
        if good < len(rows):
            parts[1] = f"**{said}: the bar is missed.**"
        write(args.report, "A training killed at random moments", command_line(), about, parts)
    counts = {"runs": len(rows), "identical": good, "killed": hit, "sha256": reference}
    print(json.dumps(counts))
    return 0 if good == hit == len(rows) else 1


def kill_one(begin: list[str], out: Path, victim: str, at_s: float, reference: str) -> Row:
    """Start a training, kill one of its processes after `at_s` seconds, and bring it to its end."""
    shutil.rmtree(out, ignore_errors=True)
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
    if process.returncode == 0 and killed_s is not None and victim == "trainer":
        result = json.loads((out / "result.json").read_text())
        notes += [] if result["restarts"] == 1 else [f"{result['restarts']} restarts"]
    warnings = [line for line in err.splitlines() if line.startswith("warning")]
    notes += [line for line in warnings if "damaged" in line or "truncated" in line]
    same = process.returncode == 0 and digest(out) == reference
    return Row(victim, killed_s, step, same, len(warnings), left_over, "; ".join(notes))


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
