"""Exported files: how fast beside eager PyTorch, how large the runner, and every model in every graph at full width.

    OMP_NUM_THREADS=1 python benchmarks/bench_export.py [--only speed,memory,matrix] [--models A,B] [--report FILE]

speed    CPU time of a step and of 16 steps, one thread, batch 1, all ways in turn in one process, medians; the files
         have been held to the network in the same run. "bound" is what 16 steps would be faster if everything but the
         convolutions and linear layers were free: eager time / time of those nodes in onnxruntime's own profile.
         "without neurons" is how much faster a Scan is from which every neuron was cut: not a network any more;
         "exact" the Scan of the exact form, with weights of 8 bits.
memory   resident memory of a process that runs the file, RevSResNet21 at width 32: largest, and after loading.
matrix   {TorchScript, ONNX step, Scan, unrolled} x {batch 1, 3} x {T 4, 16} for every model of the registry.
         Passes: bounds, flips and bits, and no forced spike that differs more than 1e-5 away from its threshold.

Ends with 1 if a bar is missed; the last line is one JSON object.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from export_nets import STEPS, Frames, events, full_width, lively, written
from export_speed import SEQUENCE_BAR, STEP_BAR, speed
from report import command_line, machine, markdown_table, write

from revedge import models
from revedge.export.inference import inference_form
from revedge.export.measure import measure
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.parity import ParityReport, check_forced_flips, compare_steps
from revedge.export.probes import TorchScriptProbe, TrainedProbe
from revedge.export.sequence_check import compare_with_step
from revedge.export.torchscript import write_torchscript
from revedge.export.writer import manifest_of
from revedge.models import SpikingNet

BATCHES, LENGTHS = (1, 3), (4, 16)
MEMORY_BAR_BYTES = 80e6
FARTHEST_FLIP = 1e-5  # bar: forced spikes differ only this close to their threshold
MOST_NODES = 4000  # of unrolled graphs: onnxruntime's time to load grows with the square


def memory(folder: Path) -> tuple[list[list[Any]], bool]:
    """Rows of the memory table, and whether the step meets the bar at its peak, which is that of loading, too."""
    net = lively("revsresnet21", in_shape=(2, 32, 32), width=32)
    rows, met = [], True
    for kind, weights, low in itertools.product(
        ("onnx", "onnx-scan"), ("float32", "int8"), (False, True)
    ):
        _, _, path = written(net, kind, folder, exact=weights == "int8", weights=weights)
        found = measure(path, 1, low_memory=low)
        peak, running = found["measured_peak_bytes"], found["running_bytes"]
        met = met and (kind != "onnx" or peak <= MEMORY_BAR_BYTES)
        rows.append(
            [
                kind,
                "8-bit, exact" if weights == "int8" else weights,
                "low memory" if low else "default",
                f"{found['file_bytes'] / 1e6:.1f}",
                f"{peak / 1e6:.1f}",
                f"{running / 1e6:.1f}",
                f"{found['step_ms']:.2f}",
            ]
        )
        print("  ".join(map(str, rows[-1])), flush=True)
    return rows, met


def matrix(names: list[str], folder: Path, most_nodes: int) -> tuple[list[list[Any]], bool]:
    """Rows of the matrix, and whether everything passed."""
    rows, met = [], True
    for name in names:
        begin = time.process_time()
        net = full_width(name)
        try:
            report, left_out = _one_model(net, folder, most_nodes)
            passed = report.sequence_identical and report.twin_identical
            passed = passed and report.farthest_flip <= FARTHEST_FLIP
            note = left_out
        except Exception as error:  # one model's failure is a row, not the end
            report, passed, note = ParityReport(steps=0, batches=()), False, str(error)[:120]
        met = met and passed
        per_million = 1e6 / max(1, report.compared_spikes)
        rows.append(
            [
                name,
                "x".join(map(str, net.in_shape)),
                f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f}",
                f"{report.compared_spikes / 1e6:.0f}",
                f"{report.forced_flips * per_million:.2f}",
                f"{report.farthest_flip:.1e}" if report.forced_flips else "-",
                f"{1e6 * report.moved_values / max(1, report.compared_values):.1f}",
                f"{report.spike_flips * per_million:.0f}",
                f"{100 * report.largest_share_of_bound:.0f} %",
                "yes" if passed else "NO",
                note,
                f"{time.process_time() - begin:.0f}",
            ]
        )
        print("  ".join(map(str, rows[-1])), flush=True)
    return rows, met


def _one_model(net: SpikingNet, folder: Path, most_nodes: int) -> tuple[ParityReport, str]:
    """Everything for one model; the report counts both step files."""
    report = ParityReport(steps=STEPS, batches=BATCHES)
    recordings = [events(steps, batch, 7, net.in_shape) for steps in LENGTHS for batch in BATCHES]
    trained = TrainedProbe(net)
    model, manifest, _ = written(net, "onnx", folder)
    probe: OnnxProbe | TorchScriptProbe = OnnxProbe(model, manifest, net)
    for x in recordings:
        compare_steps(trained, probe, x, report)
    script = manifest_of(net, Frames(), "", "torchscript")
    write_torchscript(inference_form(net), script, folder / "a.pt", folder / "b.pt")
    probe = TorchScriptProbe(folder / "a.pt", net)
    for x in recordings:
        compare_steps(trained, probe, x, report)
    check_forced_flips(report)
    left_out = ""
    for kind, fixed in (("onnx-scan", None), ("onnx-unrolled", 4), ("onnx-unrolled", 16)):
        model, manifest, _ = written(net, kind, folder, steps=fixed)
        nodes = len(model.graph.node) + (fixed or 1) * sum(len(f.node) for f in model.functions)
        if nodes > most_nodes:  # the runtime writes every call out
            left_out = f"unrolled T = {fixed}: written and checked, not run ({nodes} nodes)"
            continue
        fitting = [x for x in recordings if fixed in (None, len(x))]
        compare_with_step(model, manifest, fitting, report)
    return report, left_out


ABOUT = {
    "speed": f"CPU milliseconds, one thread, batch 1, medians. Bars: a step {STEP_BAR:g} times, {STEPS} steps in one "
    f"Scan {SEQUENCE_BAR:g} times as fast as eager PyTorch. Bound: 16 steps if all but convolutions and linear layers "
    "were free; without neurons: eager / the same Scan without any neuron; exact: eager / the Scan of the exact form "
    "with 8-bit weights.",
    "memory": "RevSResNet21, width 32, 2x32x32: Python, numpy, onnxruntime and the file, one stream. Bar for "
    f"the step: {MEMORY_BAR_BYTES / 1e6:g} MB at the peak, loading included.",
    "matrix": f"TorchScript and ONNX steps at batches 1 and 3 and for {LENGTHS[0]} and {LENGTHS[1]} steps, given the "
    "network's spikes and streams (forced) and running freely; Scan and unrolled graphs bit by bit against their own "
    "step. Random frames, statistics gathered on such frames. Moved: of what branches add to streams when forced, "
    "values that a rounding error put on the grid's next step.",
}
HEADERS = {
    "speed": (
        "net, input",
        *("eager step", "TorchScript step", "ORT step", "eager / ORT"),
        *(
            "eager, 16 steps",
            "ORT step x 16",
            "Scan, 16 steps",
            "eager / Scan",
            "exact",
            "without neurons",
            "bound",
            "bars met",
        ),
    ),
    "memory": (
        "graph",
        "weights",
        "runner",
        "file MB",
        "peak MB",
        "MB after loading",
        "ms per step",
    ),
    "matrix": (
        *("model", "input", "M parameters", "M spikes", "forced flips per M", "farthest flip"),
        *(
            "moved values per M",
            "free flips per M",
            "largest share of bound",
            "passes",
            "left out",
            "CPU s",
        ),
    ),
}


def main() -> int:
    """Measure what was asked for, print, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="Exported files: speed, memory, every model.")
    parser.add_argument("--only", default="speed,memory,matrix")
    parser.add_argument("--models", default=",".join(models.names()), help="of the matrix")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--most-nodes", type=int, default=MOST_NODES, help="of an unrolled graph that is run"
    )
    parser.add_argument("--report", type=Path, help="write a Markdown report there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = machine(("torch", "onnx", "onnxruntime"))
    print("\n".join(lines))
    text, ends = [], {}
    with tempfile.TemporaryDirectory(prefix="revedge-bench-") as name:
        folder = Path(name)
        for part in args.only.split(","):
            print(f"\n{part}: {', '.join(HEADERS[part])}", flush=True)
            if part == "speed":
                rows, met = speed(folder, args.repeats)
            elif part == "memory":
                rows, met = memory(folder)
            else:
                rows, met = matrix(args.models.split(","), folder, args.most_nodes)
            ends[part] = met
            text += [f"## {part.capitalize()}", ABOUT[part], markdown_table(HEADERS[part], rows)]
    if args.report:
        write(args.report, "Exported files", command_line(), lines, text)
    print(json.dumps({"met": ends}))
    return 0 if all(ends.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
