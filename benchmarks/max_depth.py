"""How deep, and over how many time steps, can a residual net be trained in a number of bytes? Stored against revedge.

Run: python benchmarks/max_depth.py [--budgets 512MiB,1GiB] [--parts depth,time] [--no-run] [--rows FILE.jsonl]
         [--report FILE.md]

MS-ResNet and RevSResNet (the members for small frames: two stages), images of 3 x 32 x 32, batches of 16 samples in one
piece. Depth: the most blocks at T = 4. Time: the most time steps of a net of 16 blocks, as deep as MS-ResNet-34.
Stored: strategy `store`, which keeps what autograd keeps, nothing else changed. revedge: the planner is free in
strategy, slabs and update in backward; network, batch and optimizer (AdamW) are the same.
Both ends are searched by the planner (its own limits of 512 blocks and 256 steps lifted) and then really run: two steps
and an evaluation in a process behind the fence, whose peak must stay below the budget.
`--rows` keeps finished ends between calls. Exit code 1 if revedge reaches less than 8 times what stored training does,
or an end did not run inside its budget.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from report import command_line, machine, markdown_table, write

from revedge.planner import ladder
from revedge.planner.choose import choose
from revedge.planner.descent import describe
from revedge.planner.plan import Plan
from revedge.planner.request import Request
from revedge.planner.verify import verify
from revedge.units import format_bytes, parse_bytes

NETS = ("ms-resnet10", "revsresnet11")
BATCH, TIMESTEPS, BLOCKS = 16, 4, 16
BAR = 8
STORED = {"strategy": "store", "slab_bytes": 0, "update_in_backward": False}
_MOST = 4096


def search(net: str, budget_bytes: int, part: str, way: str) -> Plan | None:
    """Return the plan that reaches farthest, None where not even the smallest fits."""
    free: dict[str, Any] = {"model_options": {"depth": BLOCKS}, "prefer": "timesteps"}
    if part == "depth":
        free = {"timesteps": TIMESTEPS, "prefer": "depth"}
    request = Request(
        budget_bytes=budget_bytes,
        data="random",
        in_shape=(3, 32, 32),
        num_classes=10,
        static=True,
        model=net,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        threads=2,
        **free,
        **(STORED if way == "stored" else {}),
    )
    return choose(request).plan


def end(net: str, budget_bytes: int, part: str, way: str, *, really: bool) -> dict[str, Any]:
    """Search one end, run it, and return what came of it."""
    began_s = time.monotonic()
    plan = search(net, budget_bytes, part, way)
    found: dict[str, Any] = {"net": net, "budget": budget_bytes, "part": part, "way": way}
    if plan is None:
        return found | {"reach": 0, "plan": "nothing fits"}
    reach = plan.timesteps if part == "time" else int(plan.model_options["depth"])
    found |= {"reach": reach, "plan": describe(plan), "predicted": plan.predicted_peak_bytes}
    if really:
        done = verify(plan)
        found |= dataclasses.asdict(done) | {"wall_s": time.monotonic() - began_s}
    return found


def table(ends: list[dict[str, Any]]) -> tuple[list[list[str]], bool]:
    """Return a row for every pair of ends, and whether all bars are met."""
    rows, met = [], True
    pairs = {(each["part"], each["net"], each["budget"]) for each in ends}
    for part, net, budget in sorted(pairs):
        cells, reaches = [part, net, format_bytes(budget)], []
        for way in ("stored", "revedge"):
            one = next(
                e
                for e in ends
                if (e["part"], e["net"], e["budget"], e["way"]) == (part, net, budget, way)
            )
            reaches.append(one["reach"])
            peak, step_s = one.get("measured_peak_bytes"), one.get("step_s")
            ran = (
                "not run" if peak is None else f"{format_bytes(peak)}, {100 * peak / budget:.1f} %"
            )
            met = met and (
                not one["reach"] or (peak is not None and peak <= budget and not one["problem"])
            )
            cells += [str(one["reach"]), one["plan"], ran, f"{step_s:.1f}" if step_s else "-"]
        ratio = reaches[1] / reaches[0] if reaches[0] else float("inf")
        met = met and ratio >= BAR
        rows.append([*cells, f"{ratio:.1f}"])
    return rows, met


HEADER = (
    *("part", "net", "budget", "stored", "how", "measured peak", "s per step"),
    *("revedge", "how", "measured peak", "s per step", "times"),
)


def main() -> int:
    """Search, run, print, write."""
    parser = argparse.ArgumentParser(
        description="Depth and time steps that fit into a number of bytes."
    )
    parser.add_argument("--budgets", default="512MiB,1GiB")
    parser.add_argument("--parts", default="depth,time")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--no-run", action="store_true", help="search only")
    parser.add_argument("--rows", type=Path, help="finished ends")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    about = machine()
    ladder.MOST_BLOCKS = ladder.MOST_TIMESTEPS = _MOST
    ends: list[dict[str, Any]] = []
    if args.rows is not None and args.rows.exists():
        ends = [json.loads(line) for line in args.rows.read_text("utf-8").splitlines()]
    known = {(each["net"], each["budget"], each["part"], each["way"]) for each in ends}
    for budget in map(parse_bytes, args.budgets.split(",")):
        for part in args.parts.split(","):
            for net in args.nets.split(","):
                for way in ("stored", "revedge"):
                    if (net, budget, part, way) in known:
                        continue
                    ends.append(end(net, budget, part, way, really=not args.no_run))
                    print(json.dumps(ends[-1]), file=sys.stderr, flush=True)
                    if args.rows is not None:
                        with open(args.rows, "a", encoding="utf-8") as file:
                            file.write(json.dumps(ends[-1]) + "\n")
    rows, met = table(ends)
    text = markdown_table(HEADER, rows)
    print(text, json.dumps({"met": met}), sep="\n\n")
    if args.report is not None:
        shape = (
            f"Images 3 x 32 x 32, batch {BATCH} in one piece, AdamW. Depth: blocks at T = {TIMESTEPS}. Time: T of "
            f"{BLOCKS} blocks. Bar: {BAR} times. Stored: strategy store."
        )
        write(args.report, "Most depth and most time steps", command_line(), about, [shape, text])
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
