"""Spikes times 8-bit weights in integers: the bits of the float form, where the target takes it and where it pays."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from zoo import CLASSES, FakeFrames, conv, events, network

from revedge.engine import Branch, GlobalMean, Unit
from revedge.errors import ExportError
from revedge.export import onnx_integers
from revedge.export.exact_check import ExactProbe, compare_exactly
from revedge.export.exact_form import exact_form
from revedge.export.formats import Choices
from revedge.export.manifest import Manifest
from revedge.export.onnx_builder import OPSETS
from revedge.export.onnx_contained import contained_step
from revedge.export.onnx_file import check_onnx, write_onnx
from revedge.export.onnx_integers import pays
from revedge.export.onnx_operators import graphs, operators
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.parity import ParityReport
from revedge.export.runner import StreamRunner, open_session
from revedge.export.sequence_check import compare_with_step
from revedge.export.writer import exact_manifest, manifest_of
from revedge.models import SpikingNet
from revedge.neurons import IFNode, LIFNode

SCALE = 0.5
_KINDS = ("onnx", "onnx-scan", "onnx-blocks", "onnx-unrolled")
# The plane is 8x8, or 7x7 behind a pool; the layer, what it reads, and channels that come out.
_LAYERS: dict[str, tuple[nn.Conv2d, nn.Module | None]] = {
    "3x3": (nn.Conv2d(32, 40, 3, padding=1), None),
    "odd plane, no padding": (nn.Conv2d(32, 33, 3), nn.MaxPool2d(2, 1)),
    "stride": (nn.Conv2d(32, 24, 3, stride=2, padding=1), None),
    "stride, odd plane": (nn.Conv2d(33, 7, 3, stride=2, padding=1), nn.MaxPool2d(2, 1)),
    "no square": (nn.Conv2d(32, 9, (3, 4), (1, 2), (2, 1), (2, 1)), None),
    "1x1": (nn.Conv2d(64, 32, 1), None),
    "1x1, stride": (nn.Conv2d(64, 16, 1, stride=3), None),
    "1x1, padding": (nn.Conv2d(64, 16, 1, padding=1), None),
}
_IN_FLOAT: dict[str, tuple[nn.Conv2d, nn.Module | None]] = {
    "groups": (nn.Conv2d(64, 64, 3, padding=1, groups=2), None),
    "few channels": (nn.Conv2d(31, 40, 3, padding=1), None),
    "few products": (nn.Conv2d(48, 40, 1), None),
    "no spikes": (nn.Conv2d(32, 40, 3, padding=1), nn.AvgPool2d(2)),
}


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_integers, "_LEAST_PRODUCTS", 1)


def _net(layer: nn.Conv2d, pool: nn.Module | None) -> SpikingNet:
    """Stem, a layer of few channels, the one in question behind a neuron, readout."""
    layer.reset_parameters()
    units = [
        Unit(neuron=IFNode(), op=conv(8, layer.in_channels)),
        Unit(norm=nn.BatchNorm2d(layer.in_channels), neuron=LIFNode(), pool=pool, op=layer),
    ]
    last = Unit(
        norm=nn.BatchNorm2d(layer.out_channels),
        neuron=IFNode(),
        pool=GlobalMean(),
        op=nn.Linear(layer.out_channels, CLASSES),
    )
    return network([], head=Branch([*units, last]))


def _written(
    net: SpikingNet,
    kind: str,
    path: Path,
    weights: str = "int8",
    target: str = "ort",
    opset: int = 17,
) -> tuple[onnx.ModelProto, Manifest]:
    found = exact_form(net, SCALE)
    batch = None if target in ("ort", "generic") else 1
    steps = 4 if kind == "onnx-unrolled" else None
    chosen = Choices(weights=weights, target=target, steps=steps, batch=batch, opset=opset)
    told = manifest_of(net, FakeFrames(net), "fake", kind, chosen)
    manifest = exact_manifest(told, found.certificate)
    write_onnx(found.net, manifest, path)
    return check_onnx(path, manifest), manifest


def _answer(path: Path, net: SpikingNet) -> Any:
    runner = StreamRunner(path)
    runner.reset(3)
    return runner.sequence(events(4, 3, 5, net.in_shape))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("name", _LAYERS)
def test_integers_give_the_bits_of_the_float_form(name: str, kind: str, tmp_path: Path) -> None:
    """Spikes, membranes, states and logits are the exact form's, and answers those of the file with float weights."""
    net = _net(*_LAYERS[name])
    model, manifest = _written(net, kind, tmp_path / "int8.onnx")
    assert operators(model)["MatMulInteger"] == 1
    plain, _ = _written(net, kind, tmp_path / "float32.onnx", "float32")
    assert "MatMulInteger" not in operators(plain)
    x, report = events(4, 3, 5, net.in_shape), ParityReport(steps=4, batches=(3,))
    compare_exactly(ExactProbe(net, SCALE), OnnxProbe(model, manifest, net), x, report)
    assert report.compared_spikes
    if kind != "onnx":
        compare_with_step(model, manifest, [x], report)
        assert report.sequence_identical
    found, expected = (_answer(tmp_path / f"{w}.onnx", net) for w in ("int8", "float32"))
    assert np.array_equal(found, expected)
    assert np.any(expected)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset: int, tmp_path: Path) -> None:
    """Operators that changed on the way mean the same in all."""
    net = _net(*_LAYERS["stride"])
    model, manifest = _written(net, "onnx-scan", tmp_path / "model.onnx", opset=opset)
    assert operators(model)["MatMulInteger"] == 1
    x, report = events(4, 3, 5, net.in_shape), ParityReport(steps=4, batches=(3,))
    compare_exactly(ExactProbe(net, SCALE), OnnxProbe(model, manifest, net), x, report)
    step, feed = contained_step(model, manifest), {"x": x[0]}
    for state in manifest.states:
        feed[state.name] = np.zeros((3, *state.shape), np.float32)
    expected = open_session(step.SerializeToString()).run(["logits"], feed)
    if opset >= 19:  # from which on ONNX's evaluator reads DequantizeLinear, for the other layers
        found: Any = ReferenceEvaluator(step).run(["logits"], feed)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", _IN_FLOAT)
def test_other_layers_stay_as_they_are(name: str, tmp_path: Path) -> None:
    """Groups, few channels or products, and inputs that are no spikes: measured slower, or not exact in 8 bits."""
    model, _ = _written(_net(*_IN_FLOAT[name]), "onnx-scan", tmp_path / "model.onnx")
    assert "MatMulInteger" not in operators(model)


def test_small_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 2^22 products a sample: the multiplications saved are less than what bringing pixels together costs."""
    monkeypatch.undo()
    layer = nn.Conv2d(64, 64, 3, padding=1)
    assert pays(layer, (64, 11, 11))
    assert not pays(layer, (64, 10, 11))
    assert not pays(nn.Conv2d(64, 64, 3, stride=2, padding=1), (64, 20, 20))
    assert pays(nn.Linear(2048, 2048), (2048,))
    assert not pays(nn.Linear(2048, 2047), (2048,))


@pytest.mark.parametrize("target", ["jetpack5", "jetpack6"])
def test_other_targets_get_floats(target: str, tmp_path: Path) -> None:
    """TensorRT has no product of integers."""
    net = _net(*_LAYERS["3x3"])
    model, _ = _written(net, "onnx", tmp_path / "model.onnx", target=target)
    found = operators(model)
    assert "MatMulInteger" not in found
    assert found["DequantizeLinear"] == found["Conv"] + found["Gemm"]


def test_layers_of_the_same_size_that_read_elsewhere(tmp_path: Path) -> None:
    """Two layers with outputs of 4x4 and kernels of 3x3, one with a stride and one with a dilation of 2."""
    net = _net(nn.Conv2d(32, 8, 3, padding=2, dilation=2), None)
    strided = Unit(norm=nn.BatchNorm2d(32), neuron=IFNode(), op=nn.Conv2d(32, 32, 3, 2, 1))
    units = net.head.branch_list()[0].unit_list()
    net = network([], head=Branch([units[0], strided, *units[1:]]))
    model, manifest = _written(net, "onnx-scan", tmp_path / "model.onnx")
    assert operators(model)["MatMulInteger"] == 2
    x, report = events(4, 3, 5, net.in_shape), ParityReport(steps=4, batches=(3,))
    compare_exactly(ExactProbe(net, SCALE), OnnxProbe(model, manifest, net), x, report)


def test_linear_layers_of_spikes(tmp_path: Path) -> None:
    """Behind a pool and Flatten, too, spikes are spikes."""
    hidden = Unit(
        neuron=LIFNode(),
        pool=nn.Sequential(nn.MaxPool2d(2), nn.Flatten()),
        op=nn.Linear(128, 30),
    )
    last = Unit(norm=nn.BatchNorm1d(30), neuron=IFNode(), op=nn.Linear(30, CLASSES))
    net = network([], head=Branch([hidden, last]))
    model, manifest = _written(net, "onnx-scan", tmp_path / "model.onnx")
    assert operators(model)["MatMulInteger"] == 2
    x, report = events(4, 3, 5, net.in_shape), ParityReport(steps=4, batches=(3,))
    compare_exactly(ExactProbe(net, SCALE), OnnxProbe(model, manifest, net), x, report)


def test_the_largest_sums_are_exact(tmp_path: Path) -> None:
    """All neurons fire and all weights of a channel are its largest: sums leave 16 bits, pairs of products do not."""
    layer = nn.Conv2d(64, 16, 3, padding=1)
    net = _net(layer, None)
    with torch.no_grad():
        layer.weight.fill_(0.25)
        layer.weight[8:].neg_()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d) and module.num_features == 64:
                module.bias.fill_(50.0)
    model, manifest = _written(net, "onnx", tmp_path / "model.onnx")
    x, report = events(4, 3, 5, net.in_shape), ParityReport(steps=4, batches=(3,))
    compare_exactly(ExactProbe(net, SCALE), OnnxProbe(model, manifest, net), x, report)
    sums = next(node.output[0] for node in model.graph.node if node.op_type == "MatMulInteger")
    model.graph.output.append(helper.make_tensor_value_info(sums, TensorProto.INT32, None))
    probe = OnnxProbe(model, manifest, net)
    states = [np.zeros((3, *s.shape), np.float32) for s in net.state_spec()]
    (found,) = probe._plain.run([sums], probe._feed(x[0], states))
    assert found.max() > 1 << 15
    assert found.min() < -(1 << 15)


@pytest.mark.parametrize("value", [1 << 30, -(1 << 30)])
def test_places_outside_of_the_plane_are_an_error(value: int, tmp_path: Path) -> None:
    """A file that was changed so that a layer reads elsewhere: one line, no crash."""
    net = _net(*_LAYERS["3x3"])
    model, _ = _written(net, "onnx-scan", tmp_path / "model.onnx")
    for graph in graphs(model.graph):
        for one in graph.initializer:
            if one.name.startswith("columns/"):
                changed = numpy_helper.to_array(one) + np.int32(value)
                one.CopyFrom(numpy_helper.from_array(changed, one.name))
    changed_file = tmp_path / "changed.onnx"
    changed_file.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"changed\.onnx"):
        _answer(changed_file, net)
