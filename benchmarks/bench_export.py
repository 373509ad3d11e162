"""Exported files: how fast beside eager PyTorch, how large the runner, and every model in every graph at full width.

    OMP_NUM_THREADS=1 python benchmarks/bench_export.py [--only speed,memory,matrix] [--models A,B] [--report FILE]

speed    CPU time of a step and of 16 steps, one thread, batch 1, all ways in turn in one process, medians; the files
         have been held to the network in the same run. "bound" is what 16 steps would be faster if everything but the
         convolutions and linear layers were free: eager time / time of those nodes in onnxruntime's own profile.
         "without neurons" is how much faster a Scan is from which every neuron was cut: not a network any more.
memory   resident memory of a process that runs the file, RevSResNet21 at width 32: largest, and after loading.
matrix   {TorchScript, ONNX step, Scan, unrolled} x {batch 1, 3} x {T 4, 16} for every model of the registry.

Ends with 1 if a bar is missed; the last line is one JSON object.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import command_line, machine, markdown_table, write
from torch import nn

from revedge import models
from revedge.errors import UsageError
from revedge.export.formats import Choices
from revedge.export.inference import inference_form
from revedge.export.manifest import Manifest
from revedge.export.measure import measure
from revedge.export.onnx_file import check_onnx, write_onnx
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.parity import ParityReport, check_forced_flips, compare_steps
from revedge.export.probes import TorchScriptProbe, TrainedProbe
from revedge.export.runner import open_session
from revedge.export.sequence_check import compare_with_step
from revedge.export.torchscript import compile_script, write_torchscript
from revedge.export.writer import manifest_of
from revedge.models import SpikingNet

STEPS, BATCHES, LENGTHS = 16, (1, 3), (4, 16)
STEP_BAR, SEQUENCE_BAR, MEMORY_BAR_BYTES = 3.0, 4.0, 80e6
MOST_NODES = 4000  # of unrolled graphs: onnxruntime's time to load grows with the square
_PRODUCTS = ("Conv", "Gemm", "FusedConv")
SPEED_NETS: list[tuple[str, dict[str, Any]]] = [
    ("revsresnet11", {"in_shape": (2, 16, 16)}),  # the digits
    ("revsresnet11", {"in_shape": (2, 34, 34)}),  # N-MNIST
    ("vgg5", {"in_shape": (2, 34, 34)}),
    ("revsresnet21", {"in_shape": (2, 32, 32), "width": 32}),
    ("ms-resnet18", {"in_shape": (2, 32, 32), "width": 32}),
]


class Frames:
    """What a manifest asks of a data set."""

    scale = 1.0
    class_names = tuple(str(k) for k in range(10))
    test_indices = np.arange(4)

    def batch(self, indices: Any) -> Any:
        """Never called here: inputs are made by `events`."""
        raise NotImplementedError


def lively(name: str, **options: Any) -> SpikingNet:
    """Return a network whose normalizations have gathered statistics, so that neurons of every layer fire."""
    torch.manual_seed(1)
    net = models.create(name, num_classes=10, timesteps=STEPS, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1.5, 2.5)
            nn.init.uniform_(module.bias, -0.2, 0.8)
    with torch.no_grad():
        for seed in range(6):
            net.train()(torch.from_numpy(events(4, 4, seed, net.in_shape)))
    return net.eval()


def events(steps: int, batch: int, seed: int, shape: tuple[int, ...]) -> Any:
    """Return event counts ``[steps, batch, C, H, W]``, a third of them not 0."""
    counts = np.random.default_rng(seed).poisson(0.4, (steps, batch, *shape))
    return counts.astype(np.float32) * np.float32(0.5)


def written(net: SpikingNet, kind: str, folder: Path, **chosen: Any) -> tuple[Any, Manifest, Path]:
    """Write one ONNX file, read it back and return it."""
    manifest = manifest_of(net, Frames(), "", kind, Choices(**chosen))
    path = folder / f"{kind}.onnx"
    write_onnx(inference_form(net), manifest, path)
    return check_onnx(path, manifest), manifest, path


def speed(folder: Path, repeats: int) -> tuple[list[list[Any]], bool]:
    """Rows of the speed table, and whether every bar is met."""
    rows, met = [], True
    for name, options in SPEED_NETS:
        net = lively(name, **options)
        x = events(STEPS, 1, 9, net.in_shape)
        model, manifest, step_file = written(net, "onnx", folder)
        report = ParityReport(steps=STEPS, batches=(1,))
        compare_steps(TrainedProbe(net), OnnxProbe(model, manifest, net), x, report)
        scan_model, scan_manifest, scan_file = written(net, "onnx-scan", folder)
        compare_with_step(scan_model, scan_manifest, [x], report)
        bare_file = folder / "bare.onnx"
        bare_file.write_bytes(_without_neurons(scan_model).SerializeToString())
        found = _times(net, x, manifest, (step_file, scan_file, bare_file), repeats)
        ratios = found["eager step"] / found["ORT step"], found["eager loop"] / found["Scan"]
        bound = found["eager loop"] / STEPS / _products_ms(step_file, manifest, x[0])
        good = ratios[0] >= STEP_BAR and ratios[1] >= SEQUENCE_BAR
        met = met and good
        size = "x".join(map(str, net.in_shape))
        label = f"{name} {'width 32 ' if 'width' in options else ''}{size}"
        rows.append(
            [
                label,
                *(f"{found[way]:.3f}" for way in ("eager step", "TorchScript step", "ORT step")),
                f"{ratios[0]:.2f}",
                *(f"{found[way]:.2f}" for way in ("eager loop", "ORT loop", "Scan")),
                f"{ratios[1]:.2f}",
                f"{found['eager loop'] / found['without neurons']:.2f}",
                f"{bound:.1f}",
                "yes" if good else "no",
            ]
        )
        print("  ".join(map(str, rows[-1])), flush=True)
    return rows, met


def _without_neurons(model: Any) -> Any:
    """A copy of a Scan graph in which neurons hand on what they are given and keep their state as it is."""
    bare = copy.deepcopy(model)
    scan = next(node for node in bare.graph.node if node.op_type == "Scan")
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    charged = {node.output[0]: list(node.input) for node in body.node if node.op_type == "Sub"}
    renamed = {}
    for node in body.node:
        if node.op_type == "HardSigmoid":
            renamed[node.output[0]] = charged[node.input[0]][1]
        if node.op_type == "ThresholdedRelu":
            state = charged[node.input[0]][0]
            node.op_type = "Identity"
            node.input[0] = state
            del node.attribute[:]
    kept = [node for node in body.node if node.op_type not in ("HardSigmoid", "Sub")]
    for node in kept:
        for position, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[position] = name
    del body.node[:]
    body.node.extend(kept)
    return bare


def _times(
    net: SpikingNet, x: Any, manifest: Manifest, files: tuple[Path, Path, Path], repeats: int
) -> dict[str, float]:
    step, scan, bare = map(open_session, files)
    names = ["logits", *(s.next for s in manifest.states)]
    frames, scripted = torch.from_numpy(x), compile_script(inference_form(net))
    rest = {s.name: np.full((1, *s.shape), s.init, np.float32) for s in manifest.states}
    still = net.initial_states(1)

    def eager_loop() -> None:
        states = net.initial_states(1)
        for frame in frames:
            _, states = net.step(frame, states)

    def ort_loop() -> None:
        states = rest
        for frame in x:
            _, *new = step.run(names, {"x": frame, **states})
            states = dict(zip(rest, new, strict=True))

    ways: dict[str, Callable[[], Any]] = {
        "eager step": lambda: net.step(frames[0], still),
        "TorchScript step": lambda: scripted(frames[0], still),
        "ORT step": lambda: step.run(names, {"x": x[0], **rest}),
        "eager loop": eager_loop,
        "ORT loop": ort_loop,
        "Scan": lambda: scan.run(None, {"x": x}),
        "without neurons": lambda: bare.run(None, {"x": x}),
    }
    spent: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for way, call in ways.items():
                for _ in range(5 if "step" in way else 1):  # a stream calls step after step
                    begin = time.process_time()
                    call()
                    if turn:
                        spent[way].append(time.process_time() - begin)
    return {way: 1e3 * statistics.median(values) for way, values in spent.items()}


def _products_ms(step_file: Path, manifest: Manifest, frame: Any) -> float:
    """Milliseconds per step that onnxruntime needs for convolutions and linear layers: of each node its best call."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(step_file.with_suffix(""))
    session = ort.InferenceSession(str(step_file), options, providers=["CPUExecutionProvider"])
    feed = {s.name: np.full((1, *s.shape), s.init, np.float32) for s in manifest.states}
    for _ in range(60):
        session.run(None, {"x": frame, **feed})
    best: dict[str, float] = {}
    for one in json.loads(Path(session.end_profiling()).read_text()):
        products = one.get("cat") == "Node" and one["args"].get("op_name") in _PRODUCTS
        if products and one["name"].endswith("kernel_time"):
            best[one["name"]] = min(one["dur"], best.get(one["name"], float("inf")))
    return sum(best.values()) / 1e3


def memory(folder: Path) -> tuple[list[list[Any]], bool]:
    """Rows of the memory table, and whether the step meets the bar: running, and with ``low_memory`` at its peak."""
    net = lively("revsresnet21", in_shape=(2, 32, 32), width=32)
    rows, met = [], True
    for kind in ("onnx", "onnx-scan"):
        _, _, path = written(net, kind, folder)
        for low in (False, True):
            found = measure(path, 1, low_memory=low)
            peak, running = found["measured_peak_bytes"], found["running_bytes"]
            judged = peak if low else running
            met = met and (kind != "onnx" or judged <= MEMORY_BAR_BYTES)
            setting = "low memory" if low else "default"
            rows.append(
                [
                    kind,
                    setting,
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


def full_width(name: str) -> SpikingNet:
    """Return a member of the registry at its own width, on the smallest frames of these that it takes."""
    for side in (32, 64):
        try:
            return lively(name, in_shape=(2, side, side))
        except UsageError:
            continue
    return lively(name, in_shape=(2, 128, 128))


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
        if len(model.graph.node) > most_nodes:
            left_out = f"unrolled T = {fixed}: written and checked, not run ({len(model.graph.node)} nodes)"
            continue
        fitting = [x for x in recordings if fixed in (None, len(x))]
        compare_with_step(model, manifest, fitting, report)
    return report, left_out


ABOUT = {
    "speed": f"CPU milliseconds, one thread, batch 1, medians. Bars: a step {STEP_BAR:g} times, {STEPS} steps in one "
    f"Scan {SEQUENCE_BAR:g} times as fast as eager PyTorch. Bound: 16 steps if all but convolutions and linear layers "
    "were free; without neurons: eager / the same Scan without any neuron.",
    "memory": "RevSResNet21, width 32, 2x32x32: Python, numpy, onnxruntime and the file, one stream. Bar for "
    f"the step: {MEMORY_BAR_BYTES / 1e6:g} MB while it runs, and with low memory while it is loaded, too.",
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
            "without neurons",
            "bound",
            "bars met",
        ),
    ),
    "memory": ("graph", "runner", "file MB", "peak MB", "MB after loading", "ms per step"),
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
