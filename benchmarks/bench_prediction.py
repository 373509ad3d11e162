"""Predicted against measured memory of whole trainings, over random configurations.

Run: python benchmarks/bench_prediction.py [--count 60] [--seed 0] [--first 0] [--report FILE.md] [--rows FILE.jsonl]
Prints a line per configuration and, as its last line, one JSON object. Takes some 10 s each on one core.

A seeded generator draws models, depths, widths, neurons, frames, T and batch from 1 to 64, micro-batches, strategies
(also one per run), slabs, updates in backward and both optimizers; what takes more than --most-gmacs billion
multiplications or --most-bytes is drawn again. Each is predicted by the planner (which rehearses what is small) and
then trained by `revedge train`, in fresh processes, for two steps, an evaluation and its checkpoints, on random frames.
Measured is the largest resident sum of supervisor and trainer. With --rows, what is in the file already is not run
again.

The bars: 0 <= (predicted - measured) / measured <= 5 % for every one, and <= 8 % where the base (torch and the
supervisor, measured once on this machine) is taken off both.
"""

import argparse
import dataclasses
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import report

from revedge import child
from revedge.data.writer import Samples, write_cache
from revedge.devices.run_folder import RunFolder, RunSettings
from revedge.errors import UsageError
from revedge.planner import base
from revedge.planner.cost import predict
from revedge.planner.plan import OPTIMIZERS, Plan
from revedge.planner.precision import PRECISIONS
from revedge.planner.rehearsed import closely
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient
from revedge.units import format_bytes, parse_bytes

BAR, BAR_WITHOUT_BASE = 0.05, 0.08
SHAPES = [(2, 16, 16), (1, 28, 28), (3, 32, 32), (2, 34, 34), (2, 48, 48), (2, 64, 64)]
STRATEGIES = ["store", "keep-conv", "keep-spikes", "reverse"]
TRAIN_STEPS = 2


def draw(rng: random.Random, client: TraceClient, most_macs: float, most_bytes: int) -> Setting:
    """Return a configuration that this machine can train in seconds."""
    families = {name: members for name, members in client.families().items() if members}
    while True:
        family = rng.choice(sorted(families))
        model = rng.choice(families[family])
        options: dict[str, Any] = {"width": rng.choice([4, 8, 16, 24, 32, 48])}
        neuron = rng.choice(["if", "lif", "plif", "reversible"])
        if neuron != "reversible" or family == "vgg":
            options["neuron"] = neuron
        if rng.random() < 0.4 and family != "vgg":
            options["depth"] = rng.randint(2, 24)
        batch = rng.choice([1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64])
        micro = batch
        if rng.random() < 0.25:
            micro = rng.choice([n for n in range(1, batch + 1) if batch % n == 0])
        strategies = STRATEGIES + (["invert"] if neuron == "reversible" else [])
        setting = Setting(
            model=model,
            model_options=options,
            in_shape=rng.choice(SHAPES),
            num_classes=10,
            static=rng.random() < 0.3,
            timesteps=rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]),
            batch_size=batch,
            micro_batch_size=micro,
            strategy=rng.choice(strategies),
            slab_bytes=rng.choice([None, None, 32 << 20, 8 << 20, 2 << 20]),
            update_in_backward=micro == batch and rng.random() < 0.4,
            optimizer=rng.choice(OPTIMIZERS),
        )
        mixed = rng.random() < 0.2
        try:
            traced = client.trace(setting)
            if mixed:
                names = tuple(rng.choice(strategies) for _ in range(traced["runs"]))
                setting = dataclasses.replace(setting, strategy=names)
                traced = client.trace(setting)
        except UsageError:  # such a model does not exist
            continue
        macs = traced["multiplications"] * (batch // micro)
        if macs <= most_macs and traced["peak_bytes"] <= most_bytes:
            return setting


def plan_of(setting: Setting, bare: base.Base, client: TraceClient) -> Plan:
    """Return the plan of ``setting`` as the planner makes it, with room above."""
    computed = predict(setting, bare, client)
    values = {each.name: getattr(setting, each.name) for each in dataclasses.fields(setting)}
    plan = Plan(
        **values,
        data="random",
        epochs=1,
        learning_rate=0.0,  # weights that random frames have trained may leave the range of the grid
        budget_bytes=2 * computed.predicted_peak_bytes,
        predicted_peak_bytes=computed.predicted_peak_bytes,
        parts=computed.parts,
    )
    parts = dict(closely(plan, computed, client).parts)
    return dataclasses.replace(plan, predicted_peak_bytes=sum(parts.values()), parts=parts)


def train(plan: Plan, folder: Path) -> dict[str, Any]:
    """Train for two steps and return the outcome."""
    rng = np.random.default_rng(0)
    count = plan.batch_size * TRAIN_STEPS + plan.micro_batch_size
    time = () if plan.static else (plan.timesteps,)

    def frames() -> Iterator[np.ndarray]:
        for _ in range(count):
            yield (rng.random((*time, *plan.in_shape)) < 0.2).astype(np.uint8)

    cache = folder / "cache"
    samples = Samples(
        plan.in_shape,
        None if plan.static else plan.timesteps,
        tuple(str(i) for i in range(plan.num_classes)),
        np.arange(count, dtype=np.int64) % plan.num_classes,
        count - plan.micro_batch_size,
        1.0,
        frames(),
    )
    write_cache(samples, cache, "random", {}, {})
    return follow(plan, cache, folder / "run", checkpoint_every_s=0.0)


def follow(plan: Plan, cache: Path, folder: Path, checkpoint_every_s: float) -> dict[str, Any]:
    """Train ``plan`` on a frame cache by `revedge train`, and return the outcome."""
    run = RunFolder(folder)
    run.make()
    run.begin(plan.to_toml(), RunSettings(str(cache), 0, checkpoint_every_s))
    done = subprocess.run(
        child.command("revedge.cli.main", "train", "--resume", str(run.path), "--json"),
        env=child.environment(OMP_NUM_THREADS=str(plan.threads)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        log = run.log.read_text("utf-8", "replace")[-2000:] if run.log.exists() else ""
        return {"error": done.stderr[-500:] + log}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["restarts"]:
        return {"error": f"{found['restarts']} restarts"}
    return {"measured_peak_bytes": found["measured_peak_bytes"]}


def bare_bytes(setting: Setting, bare: base.Base, client: TraceClient) -> int:
    """Return what supervisor and trainer take without the network: the base of its family."""
    parts = predict(setting, bare, client).parts
    return parts["base_bytes"] + parts["supervisor_bytes"]


def row_of(
    plan: Plan, setting: Setting, outcome: dict[str, Any], without_bytes: int
) -> dict[str, Any]:
    """Return what is written down of one configuration; ``without_bytes`` is its base."""
    row = {"setting": setting.to_json(), "parts": dict(plan.parts), **outcome}
    if "measured_peak_bytes" in outcome:
        measured, predicted = outcome["measured_peak_bytes"], plan.predicted_peak_bytes
        row["predicted_peak_bytes"] = predicted
        row["excess"] = (predicted - measured) / measured
        row["excess_without_base"] = (predicted - measured) / max(1, measured - without_bytes)
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many configurations keep the bars, and the worst."""
    good = [row for row in rows if "excess" in row]
    excess = sorted(row["excess"] for row in good)
    bare = sorted(row["excess_without_base"] for row in good)
    return {
        "configurations": len(rows),
        "failed": len(rows) - len(good),
        "under": sum(e < 0 for e in excess),
        "within_bar": sum(0 <= e <= BAR for e in excess),
        "least_excess": excess[0] if excess else None,
        "median_excess": excess[len(excess) // 2] if excess else None,
        "largest_excess": excess[-1] if excess else None,
        "within_bar_without_base": sum(0 <= e <= BAR_WITHOUT_BASE for e in bare),
        "median_excess_without_base": bare[len(bare) // 2] if bare else None,
        "largest_excess_without_base": bare[-1] if bare else None,
    }


def words(row: dict[str, Any]) -> list[str]:
    """Return the row as cells of the report's table."""
    s = row["setting"]
    options = " ".join(f"{name}={value}" for name, value in s["model_options"].items())
    strategy = s["strategy"] if isinstance(s["strategy"], str) else "+".join(s["strategy"])
    slab = "" if s["slab_bytes"] is None else f" slabs {format_bytes(s['slab_bytes'])}"
    update = " update-in-backward" if s["update_in_backward"] else ""
    size = "x".join(map(str, s["in_shape"])) + (" static" if s["static"] else "")
    batch = f"{s['batch_size']}/{s['micro_batch_size']}"
    cells = [f"{s['model']} {options}", size, str(s["timesteps"]), batch]
    cells += [strategy + slab + update, s["optimizer"]]
    if "excess" not in row:
        return [*cells, "", "", row["error"].strip().splitlines()[-1][:60], ""]
    mib = [f"{row[name] / 2**20:.1f}" for name in ("predicted_peak_bytes", "measured_peak_bytes")]
    return [
        *cells,
        *mib,
        f"{100 * row['excess']:+.2f} %",
        f"{100 * row['excess_without_base']:+.1f} %",
    ]


def main() -> int:
    """Draw, predict, train, compare."""
    parser = argparse.ArgumentParser(description="Predicted against measured memory.")
    parser.add_argument("--count", type=int, default=60, help="configurations (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the list (0)")
    parser.add_argument("--most-gmacs", type=float, default=8.0, help="billion a step (8)")
    parser.add_argument("--most-bytes", type=parse_bytes, default=2 << 30, help="traced (2GiB)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="(float32)")
    parser.add_argument("--rows", type=Path, help="JSON lines, appended to")
    parser.add_argument("--report", type=Path, help="Markdown file")
    args = parser.parse_args()
    known: dict[str, dict[str, Any]] = {}
    if args.rows is not None and args.rows.exists():
        for line in args.rows.read_text().splitlines():
            row = json.loads(line)
            known[json.dumps(row["setting"], sort_keys=True)] = row
    rng, rows = random.Random(args.seed), list[dict[str, Any]]()
    bare = base.measure(1)
    with TraceClient() as client:
        for index in range(args.count):
            drawn = draw(rng, client, args.most_gmacs * 1e9, args.most_bytes)
            setting = dataclasses.replace(drawn, precision=args.precision)
            plan = plan_of(setting, bare, client)
            without_bytes = bare_bytes(setting, bare, client)
            old = known.get(json.dumps(setting.to_json(), sort_keys=True))
            if old is not None and "measured_peak_bytes" in old:
                outcome = {"measured_peak_bytes": old["measured_peak_bytes"]}
                row = row_of(plan, setting, outcome, without_bytes)
            else:
                with tempfile.TemporaryDirectory(prefix="revedge-bench-") as folder:
                    row = row_of(plan, setting, train(plan, Path(folder)), without_bytes)
                if args.rows is not None:
                    with args.rows.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            rows.append(row)
            print(f"{index:3}", *words(row), sep="  ", flush=True)
    found = summary(rows)
    if args.report is not None:
        header = ["model", "frames", "T", "batch/micro", "saved by", "optimizer"]
        header += ["predicted MiB", "measured MiB", "excess", "without base"]
        title = f"Predicted and measured memory of whole trainings in {args.precision}"
        report.write_figures(args.report, title, found, header, [words(row) for row in rows])
    print(json.dumps(found))
    return 0 if found["within_bar"] == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
