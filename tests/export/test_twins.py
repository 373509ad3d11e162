"""Neurons that are the same are one in graphs that begin at rest; the comparison still sees every state of each."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from zoo import FakeFrames, events, settle

from revedge import models
from revedge.errors import ExportError
from revedge.export.exact_check import ExactProbe, compare_exactly
from revedge.export.exact_form import exact_form
from revedge.export.formats import Choices
from revedge.export.inference import inference_form
from revedge.export.manifest import Manifest
from revedge.export.onnx_contained import contained_step
from revedge.export.onnx_file import check_onnx, write_onnx
from revedge.export.onnx_kept import Kept, read_kept
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.parity import ParityReport, compare_steps
from revedge.export.probes import TrainedProbe
from revedge.export.runner import open_session
from revedge.export.sequence_check import compare_with_step
from revedge.export.writer import exact_manifest, manifest_of
from revedge.models import SpikingNet, spiking_units

# A neuron that reads the whole stream begins as the one that reads half of it; or two read the same stream.
_TWINS = {"revsresnet11": {4: 2, 9: 7}, "ms-resnet10": {5: 4}}
_SHAPE = (2, 16, 16)


def _net(name: str) -> SpikingNet:
    torch.manual_seed(2)
    return settle(models.create(name, in_shape=_SHAPE, num_classes=4, timesteps=4, width=16))


def _written(
    net: SpikingNet, kind: str, folder: Path, opset: int = 18
) -> tuple[onnx.ModelProto, Manifest]:
    steps = 4 if kind == "onnx-unrolled" else None
    manifest = manifest_of(net, FakeFrames(net), "fake", kind, Choices(steps=steps, opset=opset))
    write_onnx(inference_form(net), manifest, folder / "model.onnx")
    return check_onnx(folder / "model.onnx", manifest), manifest


def _carried(model: onnx.ModelProto) -> list[Kept]:
    scan = next(node for node in model.graph.node if node.op_type == "Scan")
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    names = [read_kept(value.name.removeprefix("step/")) for value in body.input]
    return [kept for kept in names if kept]


@pytest.mark.parametrize("name", _TWINS)
@pytest.mark.parametrize(
    ("kind", "opset"), [("onnx-scan", 18), ("onnx-unrolled", 18), ("onnx-unrolled", 14)]
)
def test_twins_are_carried_once_and_seen_each(
    name: str, kind: str, opset: int, tmp_path: Path
) -> None:
    """In the step inside every neuron has its state, membrane and spikes, and they are the network's."""
    net = _net(name)
    model, manifest = _written(net, kind, tmp_path, opset)
    x = events(4, 2, 3, _SHAPE)
    report = ParityReport(steps=4, batches=(2,))
    compare_with_step(model, manifest, [x], report)
    compare_steps(TrainedProbe(net), OnnxProbe(model, manifest, net), x, report)
    assert report.compared_spikes == 8 * sum(int(np.prod(s.shape)) for s in net.state_spec())
    assert report.sequence_identical
    assert report.twin_identical
    if kind == "onnx-scan":
        shared = {
            int(other.split("_")[1]): int(kept.states[0].split("_")[1])
            for kept in _carried(model)
            for other in kept.states[1:]
        }
        assert shared == _TWINS[name]
    step = open_session(contained_step(model, manifest).SerializeToString())
    states = {
        f"state_{i}": np.zeros((2, *s.shape), np.float32) for i, s in enumerate(net.state_spec())
    }
    for frame in x:
        new = step.run([f"next_{one}" for one in states], {"x": frame, **states})
        states = dict(zip(states, new, strict=True))
    for late, early in _TWINS[name].items():
        whole, part = states[f"state_{late}"], states[f"state_{early}"]
        assert part.any()
        assert np.array_equal(whole[:, : part.shape[1]], part)


@pytest.mark.parametrize("name", _TWINS)
def test_graphs_that_take_states_keep_each(name: str, tmp_path: Path) -> None:
    """Whoever gives states in may give two equal neurons different ones."""
    model, _ = _written(_net(name), "onnx-blocks", tmp_path)
    assert all(len(kept.states) == 1 for kept in _carried(model))


@pytest.mark.parametrize("name", _TWINS)
def test_neurons_that_differ_are_not_one(name: str, tmp_path: Path) -> None:
    """One of the two with another threshold: nothing is shared; a file that shares it is rejected."""
    net = _net(name)
    model, manifest = _written(net, "onnx-scan", tmp_path)
    other = _net(name)
    for late in _TWINS[name]:
        neuron = list(spiking_units(other))[late][1].neuron
        assert neuron is not None
        neuron.v_threshold = 1.5
    apart, _ = _written(other, "onnx-scan", tmp_path)
    assert all(len(kept.states) == 1 for kept in _carried(apart))
    x, report = events(4, 2, 3, _SHAPE), ParityReport(steps=4, batches=(2,))
    with pytest.raises(ExportError, match=r"fires otherwise|differs by"):
        compare_steps(TrainedProbe(other), OnnxProbe(model, manifest, other), x, report)


@pytest.mark.parametrize("name", _TWINS)
def test_twins_of_exact_forms(name: str, tmp_path: Path) -> None:
    """There, too, every bit of every neuron is that of the exact form, and scales stand in the weights."""
    net = _net(name)
    found = exact_form(net, 0.5)
    chosen = Choices(weights="int8")
    told = manifest_of(net, FakeFrames(net), "fake", "onnx-scan", chosen)
    manifest = exact_manifest(told, found.certificate)
    write_onnx(found.net, manifest, tmp_path / "model.onnx")
    model = check_onnx(tmp_path / "model.onnx", manifest)
    assert sum(len(kept.states) > 1 for kept in _carried(model)) == len(_TWINS[name])
    x, report = events(4, 2, 3, _SHAPE), ParityReport(steps=4, batches=(2,))
    compare_with_step(model, manifest, [x], report)
    compare_exactly(ExactProbe(net, 0.5), OnnxProbe(model, manifest, net), x, report)
    assert report.sequence_identical
