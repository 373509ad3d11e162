"""Every model of the registry in every graph, at batches 1 and 3 and for 4 and 16 steps; faults of sequence graphs."""

import copy
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from zoo import KINDS, Export, FakeFrames, events, settle

from revedge import models
from revedge.errors import ExportError, UsageError
from revedge.export import import_module
from revedge.export.formats import GRAPH_OF, Choices, choices
from revedge.export.inference import inference_form
from revedge.export.manifest import Manifest
from revedge.export.onnx_contained import contained_step
from revedge.export.onnx_file import check_onnx, write_onnx
from revedge.export.onnx_graph import build_model
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.parity import ParityReport, compare_steps
from revedge.export.probes import Array, TorchScriptProbe, TrainedProbe
from revedge.export.runner import open_session
from revedge.export.sequence_check import compare_with_step
from revedge.export.torchscript import read_torchscript, write_torchscript
from revedge.export.writer import manifest_of
from revedge.models import SpikingNet

_BATCHES, _STEPS = (1, 3), (4, 16)
_MOST_UNROLLED_NODES = (
    1500  # onnxruntime takes seconds to load more; benchmarks/bench_export.py goes on
)
_DEEP = 30  # neurons; with more of the same blocks, 4 steps must do here


@pytest.mark.parametrize("name", models.names())
def test_member_runs_in_every_graph(name: str, tmp_path: Path) -> None:
    """ONNX steps follow the network within rounding; other files have the bits of inference form or step."""
    net = _tiny(name)
    lengths = _STEPS if len(net.state_spec()) <= _DEEP else _STEPS[:1]
    recordings = [events(steps, batch, 7, net.in_shape) for steps in lengths for batch in _BATCHES]
    report = ParityReport(steps=16, batches=_BATCHES)
    model, manifest = _model("onnx", net, tmp_path, Choices())
    nodes = len(model.graph.node)
    trained, probe = TrainedProbe(net), OnnxProbe(model, manifest, net)
    for x in (recordings[0], recordings[-1]):
        compare_steps(trained, probe, x, report)
    assert report.twin_identical
    assert report.forced_flips <= 20e-6 * report.compared_spikes
    for kind, fixed in (
        ("onnx-scan", None),
        ("onnx-blocks", None),
        ("onnx-unrolled", 4),
        ("onnx-unrolled", 16),
    ):
        fitting = [x for x in recordings if fixed in (None, len(x))]
        if (fixed or 1) * nodes <= _MOST_UNROLLED_NODES and fitting:
            model, manifest = _model(kind, net, tmp_path, Choices(steps=fixed))
            compare_with_step(model, manifest, fitting, report)
    assert report.sequence_identical
    _check_torchscript(net, trained, recordings, tmp_path)


def _tiny(name: str) -> SpikingNet:
    """The narrowest member on the smallest frames that it takes."""
    torch.manual_seed(1)
    for side, width in itertools.product((8, 16, 32), (2, 8)):
        try:
            net = models.create(
                name, in_shape=(2, side, side), num_classes=3, timesteps=4, width=width
            )
            return settle(net)
        except UsageError:
            continue
    raise AssertionError(f"{name} takes none of these sizes")


def _check_torchscript(
    net: SpikingNet, trained: TrainedProbe, recordings: list[Array], folder: Path
) -> None:
    manifest = manifest_of(net, FakeFrames(net), "fake", "torchscript")
    write_torchscript(inference_form(net), manifest, folder / "step.pt", folder / "stream.pt")
    if len(trained.thresholds) <= _DEEP:  # the twins of a deep one take 20 s to compile
        report = ParityReport(steps=16, batches=(3,))
        compare_steps(trained, TorchScriptProbe(folder / "step.pt", net), recordings[-1], report)
    step, stream = (read_torchscript(folder / f"{file}.pt")[0] for file in ("step", "stream"))
    for x in map(torch.from_numpy, recordings):
        states, total = net.initial_states(x.shape[1]), torch.zeros(())
        for frame in x:
            expected = net.step(frame, states)[0]
            logits, states = step(frame, states)
            # A flip within the step may cost a few votes of the readout; a fault would cost most of them.
            assert float((logits - expected).detach().abs().median()) < 1e-3
            total = total + logits
        stream.reset(x.shape[1])
        assert torch.equal(stream.sequence(x), total / len(x))


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("kind", [kind for kind in GRAPH_OF if kind != "onnx"])
@pytest.mark.parametrize("layers", ["static", "reversible, 4 groups", "attention", "voting"])
def test_kinds_of_layers_in_sequence_graphs(
    layers: str, kind: str, batch: int | None, tmp_path: Path
) -> None:
    """Images, real-valued neurons and dense layers, with a free and a fixed batch; the step inside follows the net."""
    net = KINDS[layers]()
    if (layers, kind) == ("static", "onnx-blocks"):
        return
    model, manifest = _model(kind, net, tmp_path, Choices(batch=batch))
    report = ParityReport(steps=8, batches=(3,))
    x = events(net.timesteps, 3, 5)
    compare_with_step(model, manifest, [x[0] if net.static else x], report)
    frames = np.repeat(x[:1], net.timesteps, 0) if net.static else x
    compare_steps(TrainedProbe(net), OnnxProbe(model, manifest, net), frames, report)
    assert report.sequence_identical


@pytest.mark.parametrize("target", ["ort", "generic"])
@pytest.mark.parametrize("kind", ["onnx-scan", "onnx-unrolled"])
def test_an_image_without_neurons_is_read_in_every_step(
    kind: str, target: str, tmp_path: Path
) -> None:
    """Nothing of such a network depends on time; its logits are made inside the step nonetheless."""
    if (kind, target) == ("onnx-scan", "generic"):
        return
    layers = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    net = import_module(layers, in_shape=(2, 4, 4), timesteps=3, static=True)
    model, _ = _model(kind, net, tmp_path, choices([kind], target=target))
    x = events(1, 2, 5, net.in_shape)[0]
    logits, mean = open_session(model.SerializeToString()).run(["logits", "mean_logits"], {"x": x})
    expected = layers(torch.from_numpy(x)).detach().numpy()
    assert logits.shape == (3, 2, 3)
    for found in (*logits, mean):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", range(13, 24))
def test_every_opset_is_what_it_says(exported: Export, opset: int, tmp_path: Path) -> None:
    """Asked equals got, the file version is the lowest for it, and all opsets give the same bits."""
    model, _ = _model("onnx-scan", exported.net, tmp_path, Choices(opset=opset))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    lowest = onnx.helper.find_min_ir_version_for(model.opset_import)
    assert model.ir_version == max(7, lowest)
    x = events(4, 2, 0, (2, 16, 16))
    found = open_session(model.SerializeToString()).run(None, {"x": x})
    expected = open_session(exported.folder / "model.scan.onnx").run(None, {"x": x})
    assert all(map(np.array_equal, found, expected))


Spoil = Callable[[onnx.ModelProto], None]


def _body(model: onnx.ModelProto) -> onnx.GraphProto:
    scan = next(node for node in model.graph.node if node.op_type == "Scan")
    return next(attribute.g for attribute in scan.attribute if attribute.name == "body")


def _states_swapped(model: onnx.ModelProto) -> None:
    """In the body, two new states of one shape, kept in the same multiple, trade places."""
    outputs = [(one.name, str(one.type)) for one in _body(model).output]
    first, second = next(
        (a, b)
        for (a, shape), (b, other) in itertools.combinations(outputs, 2)
        if shape == other and a.split("next")[0] == b.split("next")[0] and "next" in a
    )
    trade = {first: second, second: first}
    for node in _body(model).node:
        for position, name in enumerate(node.output):
            node.output[position] = trade.get(name, name)


def _wrong_rest(model: onnx.ModelProto) -> None:
    node = next(one for one in model.graph.node if one.op_type == "ConstantOfShape")
    half = np.array(
        [0.5 * 2.0**14], np.float32
    )  # of a threshold, where a stream charges the neuron
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(half))


def _mean_off(model: onnx.ModelProto) -> None:
    next(one for one in model.graph.node if one.op_type == "Div").op_type = "Sub"


def _frame_twice(model: onnx.ModelProto) -> None:
    squeezes = [one for one in model.graph.node if one.op_type == "Squeeze"]
    squeezes[2].input[0] = squeezes[1].input[0]


def _state_skipped(model: onnx.ModelProto) -> None:
    """Time step 2 reads a state that is one step old: the fault that unrolling by hand is known for."""
    for node in model.graph.node:
        if node.output[0].startswith("t2/"):
            for position, name in enumerate(node.input):
                if re.fullmatch(r"t1/((minus_.*)?next_state_0|0)", name):
                    node.input[position] = name.replace("t1/", "t0/")


def _other_weights(model: onnx.ModelProto) -> None:
    """Time step 2 calls the function with two of its weights in each other's place."""
    call = next(one for one in model.graph.node if one.output[0] == "t2/0")
    call.input[-1], call.input[-2] = call.input[-2], call.input[-1]


def _reset_off(model: onnx.ModelProto) -> None:
    """A neuron is reset at another threshold than it fires at."""
    next(one for one in _body(model).node if one.op_type == "ThresholdedRelu").attribute[0].f = -2.0


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("scan", _reset_off),
        ("scan", _states_swapped),
        ("scan", _wrong_rest),
        ("scan", _mean_off),
        ("unrolled", _wrong_rest),
        ("unrolled", _mean_off),
        ("unrolled", _frame_twice),
        ("unrolled", _state_skipped),
        ("unrolled", _other_weights),
    ],
)
def test_spoiled_sequence_is_found(exported: Export, file: str, spoil: Spoil) -> None:
    """States in another order, a wrong rest value, frame or mean: each is an error."""
    model = onnx.load(str(exported.folder / f"model.{file}.onnx"))
    manifest = manifest_of(exported.net, exported.frames, "fake", f"onnx-{file}")
    x = events(4, 2, 3, (2, 16, 16))
    compare_with_step(model, manifest, [x], ParityReport(steps=4, batches=(2,)))
    spoil(model)
    report = ParityReport(steps=4, batches=(2,))
    with pytest.raises(
        ExportError, match=r"own step|is not the step before|states on|differs by|reset elsewhere"
    ):
        _compare_all(exported, model, manifest, x, report)


@pytest.mark.parametrize("spoil", [_frame_twice, _state_skipped])
def test_spoiled_sequence_without_functions_is_found(
    exported: Export, spoil: Spoil, tmp_path: Path
) -> None:
    """Where the target takes no functions, every time step stands in the file, and is compared node by node."""
    chosen = Choices(target="generic", opset=17)
    model, manifest = _model("onnx-unrolled", exported.net, tmp_path, chosen)
    assert not model.functions
    x = events(4, 2, 3, (2, 16, 16))
    compare_with_step(model, manifest, [x], ParityReport(steps=4, batches=(2,)))
    spoil(model)
    with pytest.raises(ExportError, match=r"own step|is not the step before"):
        compare_with_step(model, manifest, [x], ParityReport(steps=4, batches=(2,)))


def test_unrolled_steps_call_one_function(exported: Export) -> None:
    """The reference evaluator runs the file, and the step stands in it once."""
    model = onnx.load(str(exported.folder / "model.unrolled.onnx"))
    assert [node.op_type for node in model.graph.node].count("Step") == 4
    assert not {"Conv", "HardSigmoid"} & {node.op_type for node in model.graph.node}
    x = events(4, 1, 3, (2, 16, 16))
    found: Any = ReferenceEvaluator(model).run(None, {"x": x})
    expected = open_session(model.SerializeToString()).run(None, {"x": x})
    assert np.allclose(found[0], expected[0], atol=0.02)


def _compare_all(
    exported: Export, model: onnx.ModelProto, manifest: Manifest, x: Array, report: ParityReport
) -> None:
    """The two comparisons of the writer."""
    compare_with_step(model, manifest, [x], report)
    compare_steps(TrainedProbe(exported.net), OnnxProbe(model, manifest, exported.net), x, report)


def test_a_step_contains_itself(exported: Export) -> None:
    """The steps inside scan and unrolled graph are the same operators in order, and give the bits of the step file."""
    inside = {}
    for kind in ("scan", "unrolled"):
        model = onnx.load(str(exported.folder / f"model.{kind}.onnx"))
        manifest = manifest_of(exported.net, exported.frames, "fake", f"onnx-{kind}")
        inside[kind] = contained_step(model, manifest)
    kinds = [
        [(node.op_type, [str(one) for one in node.attribute]) for node in model.graph.node]
        for model in inside.values()
    ]
    assert kinds[0] == kinds[1]
    models_ = [onnx.load(str(exported.folder / "model.onnx")), *inside.values()]
    sessions = [open_session(one.SerializeToString(), optimize=False) for one in models_]
    rest = [np.full((2, *s.shape), s.init, np.float32) for s in exported.net.state_spec()]
    states = [rest] * len(sessions)
    for frame in events(4, 2, 6, (2, 16, 16)):
        found = [
            one.run(None, {"x": frame, **{f"state_{i}": v for i, v in enumerate(given)}})
            for one, given in zip(sessions, states, strict=True)
        ]
        for other in found[1:]:
            assert [v.tobytes() for v in other] == [v.tobytes() for v in found[0]]
        states = [one[1:] for one in found]


@pytest.mark.parametrize(("side", "columns"), [(8, [0, 1, 0, 0]), (6, [0, 1, 0, 1])])
def test_narrow_planes_get_their_zeros_beside_the_spikes(
    side: int, columns: list[int], tmp_path: Path
) -> None:
    """Planes of 4 and 3 columns: the step inside follows the network, and the bits are those of a file without."""
    torch.manual_seed(3)
    net = settle(
        models.create("ms-resnet10", in_shape=(2, side, side), num_classes=5, timesteps=4, width=16)
    )
    model, manifest = _model("onnx-scan", net, tmp_path, Choices())
    pads = [
        list(next(one.ints for one in node.attribute if one.name == "pads"))
        for node in _body(model).node
        if node.op_type == "Conv" and node.output[0].endswith("wider")
    ]
    assert pads
    assert all(one == columns for one in pads)
    report, x = ParityReport(steps=4, batches=(2,)), events(4, 2, 3, (2, side, side))
    compare_with_step(model, manifest, [x], report)
    compare_steps(TrainedProbe(net), OnnxProbe(model, manifest, net), x, report)
    assert report.compared_spikes
    plain = copy.deepcopy(model)
    for node in _body(plain).node:
        if node.op_type == "Conv" and node.output[0].endswith("wider"):
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    for node in _body(plain).node:
        for one in node.attribute:
            if one.name == "pads" and one.ints[:1] == [1]:
                one.ints[:] = [1, 1, 1, 1]
    sessions = [open_session(one.SerializeToString()) for one in (model, plain)]
    found, expected = (one.run(None, {"x": x}) for one in sessions)
    assert all(map(np.array_equal, found, expected))


def test_weights_stand_inside_the_body(exported: Export) -> None:
    """Where onnxruntime prepares them; nothing outside but sizes and constants of the frame around it."""
    model = onnx.load(str(exported.folder / "model.scan.onnx"))
    inside = sum(len(one.raw_data) for one in _body(model).initializer)
    outside = sum(len(one.raw_data) for one in model.graph.initializer)
    parameters = sum(p.numel() for p in inference_form(exported.net).parameters())
    assert inside >= 4 * parameters
    assert outside < 1000


def test_same_network_gives_same_bytes(exported: Export) -> None:
    """Nothing random or of this machine is in a file."""
    manifest = manifest_of(exported.net, exported.frames, "fake")
    model = build_model(inference_form(exported.net), manifest)
    content = model.SerializeToString(deterministic=True)
    assert content == (exported.folder / "model.onnx").read_bytes()


def _model(
    kind: str, net: SpikingNet, folder: Path, chosen: Choices
) -> tuple[onnx.ModelProto, Manifest]:
    manifest = manifest_of(net, FakeFrames(net), "fake", kind, chosen)
    write_onnx(inference_form(net), manifest, folder / "model.onnx")
    return check_onnx(folder / "model.onnx", manifest), manifest
