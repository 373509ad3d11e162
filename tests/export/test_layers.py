"""Every kind of layer, in both formats, against the trained network: 16 steps, batches 1 and 3."""

from pathlib import Path

import numpy as np
import pytest
from zoo import KINDS, FakeFrames, digest, events

from revedge.export.formats import Choices
from revedge.export.inference import inference_form
from revedge.export.manifest import Manifest
from revedge.export.onnx_file import check_onnx, write_onnx
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.onnx_step import OFFSET
from revedge.export.parity import ParityReport, compare_steps
from revedge.export.probes import FileProbe, TorchScriptProbe, TrainedProbe
from revedge.export.torchscript import write_torchscript
from revedge.export.writer import manifest_of
from revedge.models import SpikingNet

_BATCHES = (1, 3)
# One flip may start an avalanche in a float network, but in nets this small and short it does not get far.
_FEW_FLIPS_PER_MILLION = 50


def _probe(kind: str, net: SpikingNet, folder: Path) -> FileProbe:
    form = inference_form(net)
    chosen = Choices(opset=18) if kind.startswith("onnx") else Choices()
    manifest: Manifest = manifest_of(net, FakeFrames(net), "fake", kind, chosen)
    if kind.startswith("onnx"):
        write_onnx(form, manifest, folder / "model.onnx")
        return OnnxProbe(check_onnx(folder / "model.onnx", manifest), manifest, net)
    write_torchscript(form, manifest, folder / "step.pt", folder / "stream.pt")
    return TorchScriptProbe(folder / "step.pt", net)


@pytest.mark.parametrize("file", ["torchscript", "onnx", "onnx-scan"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_file_follows_the_network(kind: str, file: str, tmp_path: Path) -> None:
    """Every membrane, state and logit agrees within its rounding bound, and spikes hardly ever differ."""
    net = KINDS[kind]()
    before = digest(net)
    probe, trained = _probe(file, net, tmp_path), TrainedProbe(net)
    report = ParityReport(steps=16, batches=_BATCHES)
    for batch in _BATCHES:
        compare_steps(trained, probe, events(16, batch, seed=batch), report)
    assert report.twin_identical
    assert report.spike_flips <= _FEW_FLIPS_PER_MILLION * report.compared_spikes / 1e6
    assert all(_fired(trained)), "a silent neuron proves nothing"
    assert digest(net) == before


def _fired(trained: TrainedProbe) -> list[bool]:
    states = [np.full((3, *s.shape), s.init, np.float32) for s in trained.net.state_spec()]
    fired = [False] * len(states)
    for x in events(8, 3, seed=3):
        seen = trained.step(x, states)
        states = seen.states
        fired = [before or bool(s.any()) for before, s in zip(fired, seen.spikes, strict=True)]
    return fired


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_offset_rounds_half_to_even(sign: float) -> None:
    """Every number below 2^22, ties too: an addition between 2^23 and 2^24 is Round and the offset."""
    offset = np.float32(sign * OFFSET)
    rng = np.random.default_rng(1)
    integers = rng.integers(-(2**21), 2**21, 100_000).astype(np.float32)
    near = np.float32(2.0) ** rng.integers(-20, 22, 100_000) * rng.uniform(-1, 1, 100_000)
    for x in (integers, integers + np.float32(0.5), near.astype(np.float32)):
        assert np.array_equal((x - (-offset)) - offset, np.rint(x))
