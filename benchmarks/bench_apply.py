"""SpikingJelly's own residual nets under `revedge.engine.apply`: the same model, the same loss, less memory and time.

Run: python benchmarks/bench_apply.py [--timesteps 4] [--batch 4] [--side 64] [--rounds 3] [--report FILE.md]

`spiking_resnet18` and `sew_resnet18` as SpikingJelly 2.0.0 builds them (LIF, ATan surrogate, reset detached, ten
classes), as written and under three strategies; each measurement in a fresh process, in turn, one thread. Nothing of
the models is changed. The last line of stdout is one JSON object; exit code 1 if a loss differs by more than rounding.

The zoo imports torchvision for a function that downloads weights. Nothing is downloaded here, and torchvision is not
needed: an empty module stands in for it.
"""

import argparse
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

from peers.side_by_side import HINT, has_spikingjelly, last_line
from report import command_line, machine, markdown_table, write

from revedge import child
from revedge.allocator import preload, return_freed_memory, trim
from revedge.cli.output import table

NETS = ("spiking_resnet18", "sew_resnet18")
WAYS = ("as written", "store", "keep-conv", "keep-spikes")
MIB = 2.0**20
_SAME_LOSS = 1e-4  # relative: float32 sums in another order


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="SpikingJelly's residual nets under apply.")
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=64, help="height and width of the images")
    parser.add_argument(
        "--rounds", type=int, default=3, help="processes per row; the least time counts"
    )
    parser.add_argument("--report", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job is not None:
        print(json.dumps(_measure(json.loads(args.job))))
        return 0
    if not has_spikingjelly():
        print(HINT, file=sys.stderr)
        return 1
    about = machine(("torch", "spikingjelly"))
    shape = {"timesteps": args.timesteps, "batch": args.batch, "side": args.side}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for net in NETS:
            for way in WAYS:
                found.setdefault((net, way), []).append(_spawn(net=net, way=way, **shape))
    header = ("net", "way", "anon MiB", "activations MiB", "CPU s", "of as written", "loss")
    rows, same = [], True
    for (net, way), each in found.items():
        plain, least = found[net, WAYS[0]], min(row["cpu_s"] for row in each)
        same = same and math.isclose(each[0]["loss"], plain[0]["loss"], rel_tol=_SAME_LOSS)
        sizes = [
            f"{each[-1][key] / MIB:.1f}" for key in ("anon_peak_bytes", "activation_peak_bytes")
        ]
        times = [f"{least:.3f}", f"{least / min(row['cpu_s'] for row in plain):.2f}"]
        rows.append((net, way, *sizes, *times, f"{each[0]['loss']:.6f}"))
    print(table(header, rows))
    if args.report is not None:
        text = (
            f"T = {args.timesteps}, batch {args.batch}, images 3x{args.side}x{args.side}, 1 thread. anon: growth of "
            "anonymous memory in two steps, the gradients of 42.7 MiB included. activations: most that storages sum to "
            "beside weights and gradients."
        )
        parts = [text, markdown_table(header, rows)]
        write(args.report, "SpikingJelly's residual nets under apply", command_line(), about, parts)
    print(json.dumps({"same_loss": same, "rows": rows}))
    return 0 if same else 1


def _spawn(**job: Any) -> dict[str, Any]:
    """Measure in a fresh process; only ours gets the allocator that a training of ours would have."""
    print(f"{job['net']} {job['way']}", file=sys.stderr, flush=True)
    env = child.environment(**({} if job["way"] == WAYS[0] else preload()))
    return last_line([sys.executable, __file__, "--job", json.dumps(job)], env)


def _measure(job: dict[str, Any]) -> dict[str, Any]:
    ours = job["way"] != WAYS[0]
    if ours:
        return_freed_memory()
    import torch

    from revedge.cli.step_meter import anonymous_peak, cpu_seconds, tracked_peaks

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, reset = _zoo(job["net"])
    if ours:
        from revedge import engine

        engine.apply(net, job["way"])
    x = torch.rand(job["timesteps"], job["batch"], 3, job["side"], job["side"])
    labels = torch.arange(job["batch"]) % 10

    def step() -> float:
        net.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(net(x).mean(0), labels)
        loss.backward()
        reset(net)
        return float(loss.detach())

    found: dict[str, Any] = {}
    if ours:
        trim()
    with anonymous_peak(found):
        found["loss"] = step()
        step()
    found["cpu_s"] = cpu_seconds(step, 3)
    return found | tracked_peaks(step, net)


def _zoo(name: str) -> tuple[Any, Any]:
    """Return a net of SpikingJelly's and its reset."""
    for module in ("torchvision", "torchvision.models", "torchvision.models.utils"):
        sys.modules.setdefault(module, types.ModuleType(module))
    sys.modules["torchvision.models.utils"].load_state_dict_from_url = None  # type: ignore[attr-defined]
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet, spiking_resnet

    options = {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan()}
    options |= {"num_classes": 10, "detach_reset": True}
    if name == "sew_resnet18":
        net = sew_resnet.sew_resnet18(cnf="ADD", **options)
    else:
        net = spiking_resnet.spiking_resnet18(**options)
    functional.set_step_mode(net, "m")
    return net.train(), functional.reset_net


if __name__ == "__main__":
    raise SystemExit(main())
