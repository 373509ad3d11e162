"""Memory of a training step against depth, and against the number of time steps, for residual and reversible nets.

Run: python benchmarks/bench_depth_time.py [--depths 8,16,32,64] [--times 4,8,16,32,64] [--report FILE.md]

One stage of equal blocks (MS-ResNet: x + branch; RevSResNet: coupling blocks), strategy reverse, each measurement in a
fresh process by revedge/cli/step_meter.py. The last line of stdout is one JSON object.

Depth: what is left of the peak without weights, gradients and the bits that a block keeps must be flat within 2 %. A
block of MS-ResNet keeps its first spikes at one bit each, a block of RevSResNet nothing.
Time: the peak may grow, per time step, by what the stem's input, one stream (the run's input), one gradient of it and
the kept bits cost; for each net some strategy has to do it. Beside it the CPU time of a step, the least of
several rounds of processes in turn, and its ratio to `reverse` in the same rounds. Exit code 1 if a bar is missed.
"""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peers.side_by_side import last_line
from report import command_line, machine, markdown_table, write

from revedge import child
from revedge.allocator import preload, return_freed_memory, trim
from revedge.cli.bench_rows import strategy_options
from revedge.cli.output import table

MIB = 2.0**20
WIDTH, SIDE, BATCH = 64, 32, 2  # channels of the stream, pixels, samples
NETS = ("MS-ResNet", "RevSResNet")
DEPTH_LIMIT = 0.02
TIMES_DEPTH, DEPTHS_TIME = 8, 8  # T of the depth part, blocks of the time part
TIMED_STEPS, TIMED_REPEATS = 32, 2  # T of what is timed, and steps in one process
STRATEGIES = (
    "reverse",
    "reverse+slabs=1MiB",
    "reverse+spans=16",
    "reverse+spans=16+membranes=2",
    "reverse+spans=16+membranes=2+chunks=1MiB",
)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Memory against depth and against time steps.")
    parser.add_argument("--depths", default="8,16,32,64")
    parser.add_argument("--times", default="4,8,16,32,64")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="of the time part")
    parser.add_argument("--rounds", type=int, default=3, help="of timings; 0: none")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job is not None:
        print(json.dumps(_measure(json.loads(args.job))))
        return 0
    about = machine()
    depths = [int(word) for word in args.depths.split(",")]
    times = [int(word) for word in args.times.split(",")]
    if len(times) < 2:
        parser.error(f"--times {args.times}: growth needs two numbers of time steps or more")
    strategies = args.strategies.split(",")
    depth_header, depth_rows, flat = _depth_part(depths)
    time_header, time_rows, bounded = _time_part(times, strategies, args.rounds)
    print(table(depth_header, depth_rows), table(time_header, time_rows), sep="\n\n")
    if args.report is not None:
        shape = f"Stream {WIDTH} x {SIDE} x {SIDE}, batch {BATCH}, IF neurons, strategy reverse, 1 thread; MiB."
        parts = [
            shape,
            "## Depth, T = 8",
            f"rest: activations at the peak without weights, gradients and kept bits; bar: within {DEPTH_LIMIT:.0%} "
            "of the shallowest. tracked: with gradients and kept bits, without weights. anon: growth of anonymous "
            "memory in the first two steps. beyond tensors: anon - tracked.",
            markdown_table(depth_header, depth_rows),
            "## Time steps, 8 blocks",
            "per step: growth of the activations from the first T to the last, per time step; allowed: input, stream, "
            f"one gradient and the kept bits of a time step. CPU s: of a step at T = {TIMED_STEPS}, the least of "
            f"{args.rounds} processes in turn with {TIMED_REPEATS} steps each; to reverse: its ratio to the first row.",
            markdown_table(time_header, time_rows),
        ]
        write(args.report, "Memory against depth and time steps", command_line(), about, parts)
    met = {"depth": flat, "time": bounded}
    print(json.dumps({"met": met, "depth": depth_rows, "time": time_rows}))
    return 0 if all(met.values()) else 1


def _depth_part(depths: list[int]) -> tuple[tuple[str, ...], list[tuple[str, ...]], bool]:
    header = ("net", "blocks", "activations", "kept bits", "rest", "to first")
    header += ("met", "tracked", "anon", "beyond tensors")
    rows, all_met = [], True
    for net in NETS:
        first = 0.0
        for depth in depths:
            got = _spawn(net=net, depth=depth, timesteps=TIMES_DEPTH)
            bits = _bits_bytes(net, depth, TIMES_DEPTH)
            tracked, anon = got["tracked_peak_bytes"], got["anon_peak_bytes"]
            rest = got["activation_peak_bytes"] - bits
            first = first or rest
            met = abs(rest / first - 1.0) <= DEPTH_LIMIT
            all_met = all_met and met
            sizes = [f"{size / MIB:.2f}" for size in (got["activation_peak_bytes"], bits, rest)]
            process = [f"{size / MIB:.2f}" for size in (tracked, anon, anon - tracked)]
            share = f"{rest / first - 1.0:+.2%}"
            rows.append((net, str(depth), *sizes, share, "yes" if met else "NO", *process))
    return header, rows, all_met


def _time_part(
    times: list[int], strategies: list[str], rounds: int
) -> tuple[tuple[str, ...], list[tuple[str, ...]], bool]:
    columns = [f"T={timesteps}" for timesteps in times]
    header = ("net", "strategy", *columns, "per step", "allowed", "anon per step", "met")
    header += ("CPU s", "to reverse")
    steps = times[-1] - times[0]
    rows, bounded = [], dict.fromkeys(NETS, False)
    for net in NETS:
        ways = {word: strategy_options(word) for word in strategies}
        cpu_s = _timed(net, ways, rounds)
        for word, way in ways.items():
            got = [_spawn(net=net, depth=DEPTHS_TIME, timesteps=t, **way) for t in times]
            sizes = [one["activation_peak_bytes"] for one in got]
            grown, grown_anon = (
                (got[-1][key] - got[0][key]) / steps
                for key in ("activation_peak_bytes", "anon_peak_bytes")
            )
            allowed = _allowed_per_step(net)
            met = grown <= allowed
            bounded[net] = bounded[net] or met
            last = [f"{size / MIB:.3f}" for size in (grown, allowed, grown_anon)]
            cells = [f"{size / MIB:.1f}" for size in sizes]
            own_s, first_s = cpu_s.get(word), cpu_s.get(strategies[0])
            took = ["-", "-"]
            if own_s is not None and first_s is not None:
                took = [f"{own_s:.2f}", f"{own_s / first_s:.2f}"]
            rows.append((net, word, *cells, *last, "yes" if met else "NO", *took))
    return header, rows, all(bounded.values())


def _timed(net: str, ways: dict[str, dict[str, Any]], rounds: int) -> dict[str, float]:
    """Return the least CPU seconds of a step of each way; they take turns, so that all see the same machine."""
    found: dict[str, float] = {}
    for _ in range(rounds):
        for word, way in ways.items():
            job = {"net": net, "depth": DEPTHS_TIME, "timesteps": TIMED_STEPS, **way}
            took = _spawn(**job, repeats=TIMED_REPEATS)["cpu_s"]
            found[word] = min(took, found.get(word, took))
    return found


def _stream_bytes(timesteps: int) -> int:
    return 4 * timesteps * BATCH * WIDTH * SIDE * SIDE


def _bits_bytes(net: str, depth: int, timesteps: int) -> int:
    return depth * _stream_bytes(timesteps) // 32 if net == "MS-ResNet" else 0


def _allowed_per_step(net: str) -> float:
    frame = 4 * BATCH * 2 * SIDE * SIDE
    return frame + 2 * _stream_bytes(1) + _bits_bytes(net, DEPTHS_TIME, 1)


def _spawn(**job: Any) -> dict[str, Any]:
    """Measure in a fresh process, as `revedge bench` does."""
    print(
        " ".join(f"{key}={value}" for key, value in job.items() if value),
        file=sys.stderr,
        flush=True,
    )
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    return last_line(command, child.environment(**preload()))


def _measure(job: dict[str, Any]) -> dict[str, Any]:
    return_freed_memory()
    import torch

    from revedge.cli.step_meter import anonymous_peak, cpu_seconds, tracked_peaks
    from revedge.models.member import Size
    from revedge.models.ms_resnet import MSResNet
    from revedge.models.parts import neuron_maker
    from revedge.models.revsresnet import RevSResNet
    from revedge.models.task import Task

    torch.set_num_threads(1)
    torch.manual_seed(0)
    timesteps = job["timesteps"]
    task = Task(
        in_shape=(2, SIDE, SIDE),
        num_classes=10,
        timesteps=timesteps,
        static=False,
        neuron=neuron_maker("if", tau=2.0, surrogate="atan"),
        config={"name": job["net"]},
    )
    # RevSResNet counts the channels of half a stream.
    kind, width = (MSResNet, WIDTH) if job["net"] == "MS-ResNet" else (RevSResNet, WIDTH // 2)
    net = kind(widths=[width], blocks=[job["depth"]]).build(task, Size()).train()
    net.set_strategy(job.get("strategy", "reverse"))
    net.take_sizes(SimpleNamespace(**job))
    x = torch.rand(timesteps, BATCH, 2, SIDE, SIDE)
    labels = torch.arange(BATCH)

    def step() -> None:
        net.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(x), labels).backward()

    if job.get("repeats"):
        step()
        return {"cpu_s": cpu_seconds(step, job["repeats"])}
    found: dict[str, Any] = {}
    trim()
    with anonymous_peak(found):
        step()
        step()
    return found | tracked_peaks(step, net)


if __name__ == "__main__":
    raise SystemExit(main())
