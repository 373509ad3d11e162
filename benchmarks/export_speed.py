"""How fast an exported file runs beside eager PyTorch: a step, and 16 steps in one Scan. For bench_export.py."""

import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_nets import STEPS, events, lively, written

from revedge.export.inference import inference_form
from revedge.export.manifest import Manifest
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.parity import ParityReport, compare_steps
from revedge.export.probes import TrainedProbe
from revedge.export.runner import open_session
from revedge.export.sequence_check import compare_with_step
from revedge.export.torchscript import compile_script
from revedge.models import SpikingNet

STEP_BAR, SEQUENCE_BAR = 3.0, 4.0
_PRODUCTS = ("Conv", "Gemm", "FusedConv")
SPEED_NETS: list[tuple[str, dict[str, Any]]] = [
    ("revsresnet11", {"in_shape": (2, 16, 16)}),  # the digits
    ("revsresnet11", {"in_shape": (2, 34, 34)}),  # N-MNIST
    ("vgg5", {"in_shape": (2, 34, 34)}),
    ("revsresnet21", {"in_shape": (2, 32, 32), "width": 32}),
    ("ms-resnet18", {"in_shape": (2, 32, 32), "width": 32}),
]


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
        _, _, exact_file = written(net, "onnx-scan", folder, exact=True, weights="int8")
        sequences = {"Scan": scan_file, "exact": exact_file, "without neurons": bare_file}
        found = _times(net, x, manifest, step_file, sequences, repeats)
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
                *(
                    f"{found['eager loop'] / found[way]:.2f}"
                    for way in ("exact", "without neurons")
                ),
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
    reset = {node.input[0] for node in body.node if node.op_type == "ThresholdedRelu"}
    charged = {node.output[0]: list(node.input) for node in body.node if node.output[0] in reset}
    wider = {node.output[0]: node for node in body.node if node.input[0] in charged}
    renamed = {}
    for node in body.node:
        if node.op_type == "HardSigmoid" and node.input[0] in charged:
            renamed[node.output[0]] = charged[node.input[0]][1]
        elif node.op_type == "HardSigmoid":  # behind columns of zeros, which stay
            renamed[node.output[0]] = node.input[0]
            wider[node.input[0]].input[0] = charged[wider[node.input[0]].input[0]][1]
        if node.op_type == "ThresholdedRelu":
            state = charged[node.input[0]][0]
            node.op_type = "Identity"
            node.input[0] = state
            del node.attribute[:]
    kept = [
        node
        for node in body.node
        if node.op_type != "HardSigmoid" and node.output[0] not in charged
    ]
    for node in kept:
        for position, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[position] = name
    del body.node[:]
    body.node.extend(kept)
    return bare


def _times(
    net: SpikingNet,
    x: Any,
    manifest: Manifest,
    step_file: Path,
    sequences: dict[str, Path],
    repeats: int,
) -> dict[str, float]:
    step = open_session(step_file)
    graphs = {way: open_session(path) for way, path in sequences.items()}
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
        **{way: partial(session.run, None, {"x": x}) for way, session in graphs.items()},
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
