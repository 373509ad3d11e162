"""Does a training keep its budget? Random (configuration, budget) pairs, half of them while others take memory.

Run: python benchmarks/keeping_it.py [--pairs 100] [--seed 0] [--lies N] [--rows FILE.jsonl] [--report FILE.md]
Each pair is a whole `revedge train` of 30 steps on random frames, measured from outside every 5 ms (small_board.py).
Budgets: 5 % below the floor that the planner gives (must be refused before the first step, with that floor), the floor,
2 % above it, and roomy, up to 60 % above it (must train). Half of the trainings run on a board of the budget and 0.7
GiB beside a process that takes 0.3 to 1.2 GiB, holds it for up to 1.5 s and frees it.
`--lies N`: as many more trainings whose plan says 0 bytes and whose budget is too small for it: the fence must hold,
and the ladder must find a way or say that there is none.
`--rows` adds the pairs to a file, and `--report` is of all in it: 100 pairs may come of five seeds.
Exit code 1 if anything was over its budget, crashed, was refused wrongly or not refused. Needs a Linux, and root.
"""

import argparse
import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import command_line, machine, markdown_table, write
from small_board import Board, watch

from revedge.devices.metrics_log import read_metrics
from revedge.devices.run_folder import RunFolder, RunSettings
from revedge.planner import base
from revedge.planner.cost import predict
from revedge.planner.descent import descend, dump
from revedge.planner.formulas import Formulas
from revedge.planner.plan import Plan
from revedge.planner.request import Request
from revedge.planner.search import search
from revedge.planner.trace_client import TraceClient
from revedge.units import format_bytes

MIB = 1 << 20
LIMIT_S = 240.0
KINDS = ("below", "floor", "least", "roomy")
_MODELS = ("vgg5", "vgg-iso10", "revsresnet11", "revsresnet16", "ms-resnet6", "ms-resnet10")
_NO_WAY = ("out of memory inside", "is used up before the first step")
_BOARD_MORE = 700 * MIB  # beside the budget


@dataclasses.dataclass
class Pair:
    """One configuration with its budget, and what came of it."""

    number: int
    request: Request
    kind: str  # of KINDS, or "lie"
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
        families, formulas = tracer.families(), Formulas(tracer)  # as `choose` asks

        def ask(setting: Any) -> Any:
            return predict(setting, bare, formulas)

        while len(pairs) < count + lies:
            request = draw(rng)
            try:
                floor = search(request, families, ask).floor_bytes
            except ValueError:
                continue  # this model has no such form
            number = len(pairs)
            kind = rng.choices(KINDS, (20, 10, 20, 50))[0]
            share = {"below": 0.95, "floor": 1.0, "least": 1.02, "roomy": rng.uniform(1.02, 1.6)}
            pair = Pair(
                number, request, kind, math.ceil(floor * share[kind]), floor, number % 2 == 1
            )
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
        try:
            pair.peak_bytes = watch(process, LIMIT_S, board, pair.number)
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
            process.wait()
        pair.wall_s = time.monotonic() - began_s
        lines = read_metrics(folder / "run" / "metrics.jsonl")
        pair.rungs = sum(line["event"] == "rung" for line in lines)
        pair.pauses = sum(line["event"] == "paused" for line in lines)
        begun = any(line["event"] == "start" for line in lines)
        _judge(pair, process.returncode, out, err, begun=begun)


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
        # The hog, or others on this machine, left no room for the whole time.
        pair.outcome = "gave way"
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
    parser.add_argument("--rows", type=Path, help="add the pairs to this file")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    # As in every child: the base is remembered with it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    about = machine()
    rows = [json.loads(line) for line in _lines(args.rows)]
    for pair in plan_all(args.pairs, args.lies, args.seed):
        run(pair)
        rows.append(row(pair))
        print("  ".join(rows[-1].values()), flush=True)
        if args.rows is not None:
            with open(args.rows, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    said, bad = summary(rows)
    print(said, f"problems: {bad}", sep="\n\n")
    if args.report is not None:
        all_rows = markdown_table(list(rows[0]), [list(each.values()) for each in rows])
        verdict = f"**{len(rows)} pairs, {bad} problems.**"
        write(args.report, "Keeping the budget", command_line(), about, [verdict, said, all_rows])
    return 1 if bad else 0


def _lines(path: Path | None) -> list[str]:
    return path.read_text("utf-8").splitlines() if path is not None and path.exists() else []


def row(pair: Pair) -> dict[str, str]:
    """Return a pair as one row of the table."""
    request = pair.request
    what = f"{request.model} T={request.timesteps} B={request.batch_size} {request.in_shape[1]}px"
    return {
        "kind": pair.kind,
        "beside a hog": "yes" if pair.hog else "",
        "configuration": f"{what} {request.strategy or ''} {request.optimizer or ''}".strip(),
        "floor": format_bytes(pair.floor_bytes),
        "budget": format_bytes(pair.budget_bytes),
        "peak / budget": f"{pair.peak_bytes / pair.budget_bytes:.3f}" if pair.peak_bytes else "-",
        "rungs": str(pair.rungs),
        "pauses": str(pair.pauses),
        "s": f"{pair.wall_s:.1f}",
        "outcome": pair.outcome,
        "problem": pair.problem,
    }


def summary(rows: list[dict[str, str]]) -> tuple[str, int]:
    """Return a table of how the kinds of pairs ended, and how many problems there were."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for each in rows:
        groups.setdefault((each["kind"], each["beside a hog"], each["outcome"]), []).append(each)
    lines = []
    for key, group in sorted(groups.items()):
        peaks = [each["peak / budget"] for each in group if each["peak / budget"] != "-"]
        rungs, pauses = (
            str(sum(int(each[name]) for each in group)) for name in ("rungs", "pauses")
        )
        lines.append([*key, str(len(group)), max(peaks, default="-"), rungs, pauses])
    header = (
        "kind",
        "beside a hog",
        "outcome",
        "pairs",
        "largest peak / budget",
        "rungs",
        "pauses",
    )
    return markdown_table(header, lines), sum(bool(each["problem"]) for each in rows)


if __name__ == "__main__":
    sys.exit(main())
