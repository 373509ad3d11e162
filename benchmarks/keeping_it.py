"""Does a training keep its budget? Random (configuration, budget) pairs, half of them while others take memory.

Run: python benchmarks/keeping_it.py [--pairs 100] [--seed 0] [--minutes M] [--lies N]
Each pair is a whole `revedge train` of a few steps on random frames, measured from outside every 5 ms (resident and
swapped bytes of supervisor and trainer, and the kernel's own peaks). Budgets lie between 5 % below the floor that the
planner gives (must be refused before the first step, with that floor), 2 % above it (must train), and roomy.
Half of the trainings run beside a process that takes 0.3 to 1.2 GiB, holds it for up to 1.5 s and frees it, on a board
of the budget and 0.7 GiB: a /proc/meminfo of their own (a mount namespace, so this needs root) in which MemAvailable is
that board's RAM without the system's share and without what training and the other process really hold.
`--lies N`: as many more trainings whose plan says 0 bytes and whose budget is too small for it: the fence must hold,
and the ladder must find a way or say that there is none.
Exit code 1 if anything was over its budget, crashed, was refused wrongly or not refused. Needs a Linux, not psutil.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from revedge.devices.meter import status_bytes
from revedge.devices.metrics_log import read_metrics
from revedge.devices.run_folder import RunFolder, RunSettings
from revedge.planner import base
from revedge.planner.cost import predict
from revedge.planner.descent import descend, dump
from revedge.planner.plan import Plan
from revedge.planner.request import Request
from revedge.planner.search import search
from revedge.planner.trace_client import TraceClient
from revedge.units import format_bytes

MIB = 1 << 20
LIMIT_S = 240.0
_MODELS = ("vgg5", "vgg-iso10", "revsresnet11", "revsresnet16", "ms-resnet6", "ms-resnet10")
_NO_WAY = ("out of memory inside", "is used up before the first step")
_BOARD_MORE, _SYSTEM = 700 * MIB, 100 * MIB  # beside the budget; what the system holds of it
_HOG = """
import mmap, random, sys, time
rng = random.Random(int(sys.argv[1]))
while True:
    size = rng.randrange(300, 1200) << 20
    taken = mmap.mmap(-1, size)
    for place in range(0, size, 4096):
        taken[place] = 1
    time.sleep(rng.uniform(0.1, 1.5))
    taken.close()
    time.sleep(rng.uniform(0.1, 1.0))
"""


@dataclasses.dataclass
class Pair:
    """One configuration with its budget, and what came of it."""

    number: int
    request: Request
    kind: str  # "below", "least", "roomy", "lie"
    budget_bytes: int
    floor_bytes: int
    hog: bool
    plan: Plan | None = None
    ladder: str = ""
    outcome: str = ""
    peak_bytes: int = 0
    rungs: int = 0
    pauses: int = 0
    wall_s: float = 0.0
    problem: str = ""


def draw(rng: random.Random) -> Request:
    """Draw a configuration; budget 1, so that the search answers with the floor."""
    side = rng.choice((8, 12, 16, 24))
    strategy = rng.choice((None, None, None, "store", "keep-conv", "keep-spikes", "reverse"))
    return Request(
        budget_bytes=1,
        data="npz",
        in_shape=(2, side, side),
        num_classes=3,
        model=rng.choice(_MODELS),
        timesteps=rng.choice((1, 2, 4, 6, 10, 16)),
        batch_size=rng.choice((4, 8, 12, 16, 32)),
        strategy=strategy,
        optimizer=rng.choice((None, "sgd", "adamw")),
        threads=len(os.sched_getaffinity(0)),
    )


def plan_all(count: int, lies: int, seed: int) -> list[Pair]:
    """Draw the pairs and plan each, with one tracing process; what it finds is remembered for the trainings."""
    rng, pairs = random.Random(seed), list[Pair]()
    bare = base.measure(len(os.sched_getaffinity(0)))
    with TraceClient() as tracer:
        families = tracer.families()

        def ask(setting: Any) -> Any:
            return predict(setting, bare, tracer)

        while len(pairs) < count + lies:
            request = draw(rng)
            try:
                floor = search(request, families, ask).floor_bytes
            except ValueError:
                continue  # this model has no such form
            number = len(pairs)
            kind = rng.choices(("below", "least", "roomy"), (20, 20, 60))[0]
            share = {"below": 0.95, "least": 1.02, "roomy": rng.uniform(1.02, 1.6)}[kind]
            pair = Pair(number, request, kind, int(floor * share), floor, number % 2 == 1)
            if number >= count:
                pair = _lie(pair, rng, families, ask)
            elif kind != "below":
                wanted = dataclasses.replace(request, budget_bytes=pair.budget_bytes)
                pair.plan = search(wanted, families, ask).require()
                descend(pair.plan, ask)
            pairs.append(pair)
            print(f"planned {number + 1}: {kind} {request.model}", file=sys.stderr, flush=True)
    return pairs


def _lie(pair: Pair, rng: random.Random, families: Any, ask: Any) -> Pair:
    """Take the fastest plan, say it needs nothing, and give it less than it needs."""
    wanted = dataclasses.replace(
        pair.request, budget_bytes=1 << 40, strategy="store", slab_bytes=0, update_in_backward=False
    )
    plan = search(wanted, families, ask).require()
    fixed = plan.parts["base_bytes"] + plan.parts["supervisor_bytes"]
    need = plan.predicted_peak_bytes - fixed
    budget = fixed + int(need * rng.uniform(0.3, 0.95))
    pair.ladder = dump(descend(dataclasses.replace(plan, budget_bytes=budget), ask))
    pair.plan = dataclasses.replace(
        plan, budget_bytes=budget, predicted_peak_bytes=0, parts={"base_bytes": 0}, epochs=2
    )
    pair.kind, pair.budget_bytes = "lie", budget
    return pair


def write_data(folder: Path, request: Request) -> Path:
    """Write random counts of events for epochs of fifteen steps."""
    rng, count = np.random.default_rng(0), (request.batch_size or 1) * 15
    shape = (request.timesteps or 1, *request.in_shape)
    train = (rng.random((count, *shape)) < 0.2).astype(np.uint8)
    test = (rng.random((request.batch_size or 1, *shape)) < 0.2).astype(np.uint8)
    path = folder / "frames.npz"
    np.savez(
        path,
        train_x=train,
        train_y=np.arange(count) % 3,
        test_x=test,
        test_y=np.arange(len(test)) % 3,
    )
    return path


class Board:
    """A /proc/meminfo for one command, in a mount namespace of its own."""

    def __init__(self, path: Path, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self.write(0)
        mount = 'mount --bind "$0" /proc/meminfo && exec "$@"'
        self.command = ["unshare", "--mount", "sh", "-c", mount, str(path)]

    def write(self, used_bytes: int) -> None:
        """Let the board have what `used_bytes` and the system leave; one write, always as long."""
        left = max(0, self._total_bytes - _SYSTEM - used_bytes)
        rows = [("MemTotal:", self._total_bytes), ("MemAvailable:", left)]
        text = "".join(f"{name:<16}{size // 1024:>12} kB\n" for name, size in rows)
        os.pwrite(self._file, text.encode(), 0)


def command(pair: Pair, folder: Path, data: Path) -> list[str]:
    """Return the command line of the pair's training."""
    request, words = pair.request, [sys.executable, "-m", "revedge.cli.main", "train", "--json"]
    if pair.kind == "lie":
        from revedge.data import prepare

        assert pair.plan is not None
        plan = dataclasses.replace(pair.plan, data_dir=str(data))
        run = RunFolder(folder / "run")
        run.make()
        cache = prepare("npz", str(data), plan.timesteps)
        run.begin(plan.to_toml(), RunSettings(str(cache), 0, 1.0), pair.ladder)
        return [*words, "--resume", str(run.path)]
    words += [
        "--data",
        "npz",
        "--data-dir",
        str(data),
        "--out",
        str(folder / "run"),
        "--epochs",
        "2",
    ]
    words += ["--budget", str(pair.budget_bytes), "--model", str(request.model)]
    words += ["--batch", str(request.batch_size), "--timesteps", str(request.timesteps)]
    for option, value in (("--strategy", request.strategy), ("--optimizer", request.optimizer)):
        words += [option, value] if value else []
    return words


def run(pair: Pair) -> None:
    """Train the pair, beside a hog if it has one, and note what came of it."""
    with tempfile.TemporaryDirectory(prefix="revedge-keep-") as name:
        folder = Path(name)
        data = write_data(folder, pair.request)
        began_s = time.monotonic()
        words = command(pair, folder, data)
        board = Board(folder / "meminfo", pair.budget_bytes + _BOARD_MORE) if pair.hog else None
        words = [*board.command, *words] if board else words
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        hogs: list[subprocess.Popen[bytes]] = []
        try:
            pair.peak_bytes = _watch(pair, process, began_s, hogs, board)
            out, err = process.communicate(timeout=10)
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
            process.kill()
            process.wait()
        pair.wall_s = time.monotonic() - began_s
        lines = read_metrics(folder / "run" / "metrics.jsonl")
        pair.rungs = sum(line["event"] == "rung" for line in lines)
        pair.pauses = sum(line["event"] == "paused" for line in lines)
        begun = any(line["event"] == "start" for line in lines)
        _judge(pair, process.returncode, out, err, begun=begun)


def _watch(
    pair: Pair,
    process: "subprocess.Popen[str]",
    began_s: float,
    hogs: "list[subprocess.Popen[bytes]]",
    board: "Board | None",
) -> int:
    """Return the largest sum of resident and swapped bytes of supervisor and trainer, sampled every 5 ms.

    The hog begins with the trainer: before, there is nothing but planning, which is refused or not.
    """
    peak = trainer = 0
    supervisor = process.pid
    while process.poll() is None and time.monotonic() - began_s < LIMIT_S:
        own = status_bytes(supervisor)
        own_bytes = own.get("VmRSS", 0) + own.get("VmSwap", 0)
        if not trainer or not os.path.exists(f"/proc/{trainer}"):
            trainer = _trainer_of(supervisor)
        other = status_bytes(trainer) if trainer else {}
        if board is not None:
            others = sum(status_bytes(hog.pid).get("VmRSS", 0) for hog in hogs)
            board.write(own_bytes + other.get("VmRSS", 0) + others)
        if trainer:
            resident = max(
                other.get("VmRSS", 0), other.get("VmHWM", 0)
            )  # the kernel saw more than 5 ms shows
            peak = max(peak, own_bytes + resident + other.get("VmSwap", 0))
            if pair.hog and not hogs:
                hogs.append(subprocess.Popen([sys.executable, "-c", _HOG, str(pair.number)]))
        time.sleep(0.005)
    return peak


def _trainer_of(supervisor: int) -> int:
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        for child in children:
            if b"revedge.devices.trainer" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    except OSError:
        pass
    return 0


def _judge(pair: Pair, code: int | None, out: str, err: str, *, begun: bool) -> None:
    """Say what came of a pair, and what was wrong with it."""
    try:
        found = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        found = {}
    peak = max(pair.peak_bytes, int(found.get("measured_peak_bytes") or 0))
    pair.peak_bytes = peak
    last = (err.strip().splitlines() or [""])[-1][:300]
    if pair.kind == "below":
        right = code == 1 and not begun and found.get("floor_bytes") == pair.floor_bytes
        pair.outcome = "refused"
        floor = found.get("floor_bytes")
        pair.problem = "" if right else f"exit {code}, floor {floor} for {pair.floor_bytes}: {last}"
        return
    if begun and peak > pair.budget_bytes:
        pair.problem = f"over by {format_bytes(peak - pair.budget_bytes)}"
    if code == 0:
        pair.outcome = "trained"
        return
    if code is None or code < 0:
        pair.outcome, pair.problem = "crashed", f"exit {code}: {last}"
    elif "the machine has room for" in last or "than this machine has now" in last:
        pair.outcome = (
            "gave way"  # the hog, or others on this machine, left no room for the whole time
        )
    elif pair.kind == "lie" and any(text in last for text in _NO_WAY):
        pair.outcome = "stopped"
    else:
        pair.outcome = "failed"
        pair.problem = pair.problem or f"exit {code}: {last}"


def main() -> int:
    """Plan, train, print one row for each pair and the counts."""
    parser = argparse.ArgumentParser(description="Does a training keep its budget?")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--lies", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop drawing after so long"
    )
    args = parser.parse_args()
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # as in every child: the base is remembered with it
    began_s, done = time.monotonic(), list[Pair]()
    for pair in plan_all(args.pairs, args.lies, args.seed):
        if time.monotonic() - began_s > args.minutes * 60:
            break
        run(pair)
        done.append(pair)
        print(row(pair), flush=True)
    counts = Counter((pair.kind, pair.hog, pair.outcome) for pair in done)
    print(
        f"\n{len(done)} pairs, {sum(pair.hog for pair in done)} beside a hog, {time.monotonic() - began_s:.0f} s"
    )
    for (kind, hog, outcome), number in sorted(counts.items()):
        print(f"{kind:6} {'hog' if hog else '':4} {outcome:9} {number}")
    ratios = sorted(
        p.peak_bytes / p.budget_bytes for p in done if p.peak_bytes and p.kind != "below"
    )
    if ratios:
        print(f"peak / budget: median {ratios[len(ratios) // 2]:.3f}, largest {ratios[-1]:.4f}")
    bad = [pair for pair in done if pair.problem]
    print(f"problems: {len(bad)}")
    return 1 if bad else 0


def row(pair: Pair) -> str:
    """Return a pair in one line."""
    request = pair.request
    what = f"{request.model} T={request.timesteps} B={request.batch_size} {request.in_shape[1]}px"
    what += f" {request.strategy or '-'} {request.optimizer or '-'}"
    share = pair.peak_bytes / pair.budget_bytes
    return (
        f"{pair.number:3} {pair.kind:6} {'hog' if pair.hog else '':4} {what:48} budget "
        f"{format_bytes(pair.budget_bytes):>10} ({pair.budget_bytes / pair.floor_bytes:.2f} of the floor) peak "
        f"{share:6.3f}  rungs {pair.rungs} pauses {pair.pauses}  {pair.wall_s:5.1f} s  {pair.outcome} {pair.problem}"
    )


if __name__ == "__main__":
    sys.exit(main())
