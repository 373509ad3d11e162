"""The comparison finds what is wrong with a file, and says where; bounds are neither crossed nor idle."""

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from zoo import KINDS, Export, events

from revedge.errors import ExportError
from revedge.export.exact_check import demand_equal_answers
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.parity import (
    ParityReport,
    check_forced_flips,
    compare_predictions,
    compare_steps,
)
from revedge.export.probes import FileProbe, TorchScriptProbe, TrainedProbe
from revedge.export.recordings import repeat_frames
from revedge.export.rounding import step_bounds
from revedge.export.writer import manifest_of

Spoil = Callable[[onnx.ModelProto], None]


def _weight(model: onnx.ModelProto, rank: int) -> onnx.TensorProto:
    return [one for one in model.graph.initializer if len(one.dims) == rank][-1]


def _one_filter_off(model: onnx.ModelProto) -> None:
    tensor = _weight(model, 4)
    values = numpy_helper.to_array(tensor).copy()
    grid = 2.0**14 if np.abs(values).max() > 100 else 1.0  # a stream's: its step is in the weights
    values[0, 0] += 0.01 * grid
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _bias_dropped(model: onnx.ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if len(one.dims) == 1 and one.dims[0] > 4)
    values = np.zeros_like(numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _state_not_fed(model: onnx.ModelProto) -> None:
    """Outputs of two states of one shape trade places: the fault that stream wrappers are known for."""
    states = [v for v in model.graph.output if v.name.startswith("next_state_")]
    first, second = states[0].name, states[1].name
    trade = {first: second, second: first}
    for node in model.graph.node:
        for position, name in enumerate(node.output):
            node.output[position] = trade.get(name, name)


def _decay_off(model: onnx.ModelProto) -> None:
    """Every multiplication by a scalar constant below 1 is off by one part in 1000."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size == 1 and values.dtype == np.float32 and 0.05 < float(values) < 0.95:
            tensor.CopyFrom(
                numpy_helper.from_array(np.asarray(values * np.float32(1.001)), tensor.name)
            )


@pytest.mark.parametrize("spoil", [_one_filter_off, _bias_dropped, _state_not_fed, _decay_off])
def test_spoiled_file_is_found(exported: Export, spoil: Spoil) -> None:
    """A wrong filter, bias, state order or leak is an error that names a neuron (or the logits) and a step."""
    model = onnx.load(str(exported.folder / "model.onnx"))
    spoil(model)
    probe = OnnxProbe(model, manifest_of(exported.net, exported.frames, "fake"), exported.net)
    report = ParityReport(steps=4, batches=(3,))
    with pytest.raises(ExportError, match=r"step \d: .*(neuron|logits|adds).* rounding explains"):
        compare_steps(TrainedProbe(exported.net), probe, events(4, 3, 0, (2, 16, 16)), report)


def test_wrong_threshold_is_found(exported: Export) -> None:
    """A threshold that is off shows as spikes: where membranes agree, the count of forced flips is not zero."""
    model = onnx.load(str(exported.folder / "model.onnx"))
    fire = next(node for node in model.graph.node if node.op_type == "HardSigmoid")
    line = {one.name: one for one in fire.attribute}
    line["beta"].f = -1.05 * line["alpha"].f
    probe = OnnxProbe(model, manifest_of(exported.net, exported.frames, "fake"), exported.net)
    report = ParityReport(steps=8, batches=(3,))
    with pytest.raises(ExportError, match="fires differently"):
        compare_steps(TrainedProbe(exported.net), probe, events(8, 3, 0, (2, 16, 16)), report)


@pytest.mark.parametrize("kind", ["residual", "reversible", "dense head"])
def test_bounds_hold_between_float32_and_float64(kind: str) -> None:
    """The trained network in float64, given the same spikes, stays within the bounds of its float32 self."""
    net = KINDS[kind]()
    trained, exact = TrainedProbe(net), KINDS[kind]().double()
    states = [np.full((2, *s.shape), s.init, np.float32) for s in net.state_spec()]
    for x in events(6, 2, 9):
        seen = trained.step(x, states)
        bounds = step_bounds(
            trained.net,
            torch.from_numpy(x),
            [torch.from_numpy(v) for v in states],
            [torch.from_numpy(s) for s in seen.spikes],
        )
        logits, _ = exact.step(
            torch.from_numpy(x).double(), [torch.from_numpy(v).double() for v in states]
        )
        if not any(
            ((h - 1) ** 2 < 1e-6).any() for h in seen.membranes
        ):  # no spike that float64 may decide otherwise
            assert np.all(np.abs(logits.detach().numpy() - seen.logits) <= bounds[0].numpy())
        # Not idle: in most membranes a two-hundredth of what a spike is worth would be noticed.
        assert max(float(bound.median()) for bound in bounds[1]) < 5e-3
        states = seen.states


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_streams_are_given(kind: str, exported: Export) -> None:
    """What branches add is taken from the network: given other values, everything behind them follows those."""
    net, trained = exported.net, TrainedProbe(exported.net)
    if kind == "onnx":
        model = onnx.load(str(exported.folder / "model.onnx"))
        manifest = manifest_of(net, exported.frames, "fake")
        probe: FileProbe = OnnxProbe(model, manifest, net)
    else:
        probe = TorchScriptProbe(exported.folder / "model.step.pt", net)
    x, states = events(1, 2, 3, net.in_shape)[0], trained.rest(2)
    seen = trained.step(x, states)
    found = probe.forced(x, seen, states)
    assert len(found.streams) == len(seen.streams) > 4
    assert all(
        np.abs(a - b).max() <= 2.0**-13 for a, b in zip(found.streams, seen.streams, strict=True)
    )
    moved = dataclasses.replace(seen, streams=[s + np.float32(0.5) for s in seen.streams])
    other = probe.forced(x, moved, states)
    assert np.array_equal(other.streams[0], found.streams[0])  # the file's own, not what was given
    changed = [
        not np.array_equal(a, b) for a, b in zip(other.membranes, found.membranes, strict=True)
    ]
    assert sum(changed) > len(changed) // 3


@pytest.mark.parametrize(("compared", "most"), [(1000, 2), (150_000, 3), (2_000_000, 40)])
def test_forced_flips_are_as_rare_as_rounding(compared: int, most: int) -> None:
    """Two, or 20 in a million; one more is refused in a file that rounds."""
    report = ParityReport(
        steps=1, batches=(1,), compared_spikes=compared, forced_flips=most, spike_flips=10**6
    )
    check_forced_flips(report)
    report.forced_flips += 1
    with pytest.raises(ExportError, match=f"{most + 1} of {compared} spikes .* at most {most} "):
        check_forced_flips(report)
    report.rounds = False
    check_forced_flips(report)


def test_exact_answers_have_no_tolerance() -> None:
    """The smallest difference of a mean logit, and a sequence graph that left its step, are refused by name."""
    report = ParityReport(steps=1, batches=(1,), max_forced_difference=1.0)
    demand_equal_answers(report)
    report.max_logit_difference = 1e-30
    with pytest.raises(ExportError, match="mean logits on the test split differ by up to 1e-30"):
        demand_equal_answers(report)
    report = ParityReport(steps=1, batches=(1,), sequence_identical=False)
    with pytest.raises(ExportError, match="does not give the bits of its own step"):
        demand_equal_answers(report)


def test_changed_predictions_are_counted() -> None:
    """One of four samples changes: the error says so, and accuracy is that of the file."""
    ours = np.eye(4, dtype=np.float32)
    theirs = ours.copy()
    theirs[2] = [9, 0, 0, 0]
    report = ParityReport(steps=1, batches=(1,))
    with pytest.raises(ExportError, match="1 of 4 predictions"):
        compare_predictions(iter([(np.arange(4), ours, theirs)]), report)
    assert (report.argmax_changed, report.accuracy, report.reference_accuracy) == (1, 0.75, 1.0)
    assert report.max_logit_difference == 9


def test_recording_is_repeated_from_its_beginning() -> None:
    """5 steps of a recording of 2 are 0 1 0 1 0; an image is every step."""
    frames = np.arange(2, dtype=np.float32).reshape(2, 1, 1)
    assert repeat_frames(frames, 5, static=False).ravel().tolist() == [0, 1, 0, 1, 0]
    assert repeat_frames(frames[1], 3, static=True).ravel().tolist() == [1, 1, 1]
