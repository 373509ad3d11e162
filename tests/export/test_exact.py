"""Exact numerics: every way to run an exact form gives the same bits, and no sum leaves the certificate."""

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from zoo import KINDS, FakeFrames, digest, events, settle

from revedge import models
from revedge.errors import ExportError
from revedge.export.cells import WATCH, Cell
from revedge.export.exact_check import ExactProbe, compare_exactly
from revedge.export.exact_form import exact_form
from revedge.export.exact_layers import Snap, SumOf, TwoDigits
from revedge.export.exact_ranges import LIMIT, Certificate, Range, TooWideError
from revedge.export.formats import FORMATS, choices
from revedge.export.manifest import Manifest
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.parity import ParityReport
from revedge.export.runner import read_manifest
from revedge.export.torchscript import compile_script
from revedge.export.writer import export_network
from revedge.models.folded import FixedNorm, fold_network, shift_of
from revedge.models.snapping import levels_of, snap, snap_layers

SCALE = 0.25
_KINDS = [kind for kind in KINDS if "reversible" not in kind and kind != "late reset"]
_MEMBERS = {
    "ms-resnet6": {"width": 8, "neuron": "plif"},
    "vgg5": {"width": 8},
    "resnet50": {"width": 4, "depth": 5},
    "preact-resnet18": {"width": 4},
    "revsresnet24": {"width": 4, "tau": 1.5},
    "revsformer-2-384": {"width": 16, "heads": 2},
}
_WIDE = "stream read by the head, in two digits"


def _net(name: str) -> models.SpikingNet:
    if name in KINDS:
        return KINDS[name]()
    if name == _WIDE:
        net = KINDS["stream read by the head"]()
        with torch.no_grad():
            net.get_parameter("body.0.branches.0.norm.weight").mul_(40.0)
        return net
    torch.manual_seed(6)
    options: dict[str, Any] = {"in_shape": (2, 16, 16), "num_classes": 5, "timesteps": 4}
    return settle(models.create(name, **options, **_MEMBERS[name]))


def _run(
    form: Any, net: models.SpikingNet, x: Tensor, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """All logits and last states of ``x`` ``[T, B, C, H, W]``."""
    states = [v.to(dtype) for v in net.initial_states(x.shape[1])]
    every = []
    with torch.no_grad():
        for frame in x.to(dtype):
            logits, states = form(frame, states)
            every.append(logits)
    return [torch.stack(every).float(), *(v.float().contiguous() for v in states)]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


@contextmanager
def _without_onednn() -> Iterator[None]:
    """NNPACK's Winograd convolution, where torch has it."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before)


@pytest.mark.parametrize("name", [*_KINDS, *_MEMBERS, _WIDE])
def test_every_way_to_run_gives_the_same_bits(name: str) -> None:
    """Batch 1 instead of 3, float64, another layout, another convolution, TorchScript: logits and states are equal."""
    net = _net(name)
    before = digest(net)
    form = exact_form(net, SCALE).net
    x = torch.from_numpy(events(6, 3, 1, net.in_shape))
    expected = _run(form, net, x)
    pieces = [_run(form, net, x[:, i : i + 1]) for i in range(3)]
    joined = [
        torch.cat(parts, 1 if i == 0 else 0) for i, parts in enumerate(zip(*pieces, strict=True))
    ]
    assert _same(joined, expected)
    assert _same(_run(exact_form(net, SCALE).net.double(), net, x, torch.float64), expected)
    nhwc: Any = exact_form(net, SCALE).net
    nhwc = nhwc.to(memory_format=torch.channels_last)
    assert _same(_run(nhwc, net, x), expected)
    with _without_onednn():
        assert _same(_run(form, net, x), expected)
    assert _same(_run(compile_script(exact_form(net, SCALE).net), net, x), expected)
    assert digest(net) == before
    assert float(expected[0].abs().max()) > 0 or name == "voting"


@pytest.mark.parametrize(
    "name", ["lif soft", "coupling", "normalization on a stream", "preact-resnet18"]
)
def test_no_value_leaves_the_certificate(name: str) -> None:
    """On frames as full as 8 bits can be, sums are integers and none is above what the certificate says."""
    net = _net(name)
    exact = exact_form(net, SCALE)
    largest = {place: n for place, _, n in exact.certificate.entries}
    seen: list[tuple[str, float]] = []

    def note(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(module, Snap | SumOf):
            x = given[0] if isinstance(module, Snap) else out
            up = module.up if isinstance(module, Snap) else 1.0 / module.down
            assert torch.equal(x * up, torch.round(x * up)), "a sum is not an integer"
            seen.append((type(module).__name__, float((x * up).abs().max())))
        else:
            seen.append(("state", max(float(v.abs().max()) for v in out[1])))

    for module in exact.net.modules():
        if isinstance(module, Snap | SumOf | Cell):
            module.register_forward_hook(note)
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 2, *net.in_shape))).float()
    _run(exact.net, net, x * SCALE)
    assert max(value for kind, value in seen if kind == "Snap") <= max(largest.values()) < LIMIT
    assert len(seen) > 8


def test_a_readout_that_does_not_fit_is_taken_in_two_digits() -> None:
    """Logits are those of the rounded input in float64, rounded once; both sums are in the certificate."""
    net = _net(_WIDE)
    exact = exact_form(net, SCALE)
    readout = next(module for module in exact.net.modules() if isinstance(module, TwoDigits))
    given: list[Tensor] = []

    def note(_module: nn.Module, x: Any, out: Any) -> None:
        given.extend((x[0], out))

    readout.register_forward_hook(note)
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 2, *net.in_shape))).float()
    _run(exact.net, net, x * SCALE)
    n = (given[0] * readout.up).double()
    assert torch.equal(n, torch.round(n))
    assert 256 < float(n.abs().max()) < 2**15
    wide = n @ readout.op.weight.double().T + readout.bias.double()
    assert torch.equal(given[1], (wide * readout.scale.double()).float())
    sums = [largest for _, what, largest in exact.certificate.entries if "digits" in what]
    assert len(sums) == 2
    assert 127 * 128 < min(sums) <= max(sums) < LIMIT
    plain = {what for _, what, _ in exact_form(_net("residual"), SCALE).certificate.entries}
    assert not any("digits" in what for what in plain)


def test_a_sum_above_the_limit_is_refused() -> None:
    """2**24 - 1 grid steps pass, 2**24 do not; the place is named."""
    certificate = Certificate(12)
    certificate.enter("here", "a sum", LIMIT - 1)
    with pytest.raises(TooWideError, match="there: a sum may reach"):
        certificate.enter("there", "a sum", LIMIT)
    assert certificate.largest == LIMIT - 1


def test_range_of_a_sum_is_the_largest_there_is() -> None:
    """By trying all inputs of a small operator."""
    wide = Range.of(2, 3.0, 1).plus(Range.of(2, 1.0, 0))
    assert (wide.bound.tolist(), wide.bits.tolist()) == ([4.0, 4.0], [1.0, 1.0])
    assert wide.integers() == 8.0
    assert wide.scaled(4, 2).integers() == 32.0


def test_streams_are_coarser_where_they_must_be() -> None:
    """Where large values are added to fine ones, 12 fractional bits do not fit; the sums still do."""
    net = KINDS["residual"]()
    assert exact_form(net, SCALE).certificate.stream_bits == 12
    with torch.no_grad():
        net.get_parameter("body.0.branches.1.norm.weight")[0].mul_(3000.0)
    certificate = exact_form(net, SCALE).certificate
    assert 6 <= certificate.stream_bits < 12
    assert certificate.largest < LIMIT


@pytest.mark.parametrize(
    "name", ["average pool", "dense head", "pool before the grid", "normalization on a stream"]
)
def test_weights_on_the_grid_stay(name: str) -> None:
    """Snapping is the identity on what it gave, bit for bit, and every weight is one of 255 integers on its grid."""
    folded = fold_network(_net(name))
    layers = snap_layers(folded, 1 / 255)
    for layer in layers:
        snap(layer, layer.weight, layer.bias)
    once = digest(folded)
    for layer in layers:
        levels = levels_of(layer, layer.weight, layer.bias)
        assert float(levels.weight.abs().max()) <= 127
        scaled = layer.weight.detach().double() * layer.weight_factor
        up = torch.exp2(levels.bits).reshape([-1] + [1] * (scaled.dim() - 1))
        assert float((scaled * up - levels.weight).abs().max()) < 1e-4
        snap(layer, layer.weight, layer.bias)
    assert digest(folded) == once
    again = fold_network(folded)
    assert digest(again) == once


@pytest.mark.parametrize(
    "name",
    ["if hard", "average pool", "normalization on a stream", "pool before the grid", "normalization in the next feed",
     "sum of branches", "residual", "dense head", "attention", "forks", "static"],
)  # fmt: skip
def test_folding_keeps_the_function(name: str) -> None:
    """Where leaks and thresholds are dyadic already, the folded network is the network, to rounding of few spikes."""
    net = _net(name)
    folded = fold_network(net)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    x = torch.from_numpy(events(net.timesteps, 8, 1, net.in_shape))
    x = x[0] if net.static else x
    with torch.no_grad():
        difference = (net(x) - folded(x)).abs()
    # A flipped spike moves one sample's logits by a few hundredths; more than a third of the samples must be untouched.
    assert float(difference.max()) < 0.1
    assert int((difference.amax(1) < 1e-4).sum()) >= 3


def test_gradients_of_a_folded_network_add_up_over_micro_batches() -> None:
    """No sample sees another: two halves of a batch give the gradient of the whole."""
    folded = fold_network(_net("coupling")).train()
    x = torch.from_numpy(events(folded.timesteps, 8, 1, folded.in_shape))
    labels = torch.arange(8) % 5
    gradients = []
    for parts in ([slice(0, 8)], [slice(0, 3), slice(3, 8)]):
        folded.zero_grad()
        for part in parts:
            nn.functional.cross_entropy(
                folded(x[:, part]), labels[part], reduction="sum"
            ).backward()
        gradients.append([p.grad.clone() for p in folded.parameters() if p.grad is not None])
    assert len(gradients[0]) == 2 * len(snap_layers(folded, 1.0))
    for whole, halves in zip(*gradients, strict=True):
        assert float((whole - halves).abs().max()) <= 1e-5 * float(whole.abs().max()) + 1e-7
    assert all(
        not p.requires_grad
        for m in folded.modules()
        if isinstance(m, FixedNorm)
        for p in m.parameters()
    )


def test_leaks_become_powers_of_two() -> None:
    """tau of 2, 4, 8 stay; others go to the closest leak."""
    assert [shift_of(1 - 1 / tau) for tau in (1.2, 1.5, 2.0, 3.0, 4.0, 8.0, 1e9)] == [
        1,
        1,
        1,
        2,
        2,
        3,
        6,
    ]


@pytest.mark.parametrize("kind", ["reversible", "reversible, 4 groups", "late reset"])
def test_what_has_no_exact_form_is_refused(kind: str) -> None:
    """The layer and the way out are named."""
    with pytest.raises(
        ExportError, match=r"body\.0\.branches\.0\.units\.0\.neuron: .*--numerics float"
    ):
        exact_form(KINDS[kind](), SCALE)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("coupling, two blocks", "int8"), ("mean of one pixel", "float32"), (_WIDE, "int8")],
)
def test_file_is_equal_at_every_level_and_says_so(name: str, weights: str, tmp_path: Path) -> None:
    """All formats through the writer; onnxruntime at three levels and ONNX's own evaluator; the certificate inside.

    Step graphs called in a loop, and graphs of sequences on the whole recording.
    """
    net = _net(name)
    frames = FakeFrames(net)
    formats = [f for f in FORMATS if f != "nir"]
    chosen = choices(formats, weights=weights, numerics="exact")
    files = export_network(net, frames, tmp_path, formats, choices=chosen, numerics="exact")
    for file in files:
        assert (file.parity.spike_flips, file.parity.max_logit_difference) == (0, 0.0)
        assert file.parity.compared_spikes > 10_000
    manifest: Manifest = read_manifest(ort.InferenceSession(str(tmp_path / "model.onnx")), "file")
    assert manifest.numerics == "exact"
    assert manifest.certificate == exact_form(net, frames.scale).certificate.to_dict()
    assert manifest.certificate["largest"] < manifest.certificate["limit"] == LIMIT
    form = exact_form(net, frames.scale).net
    x = torch.from_numpy(events(net.timesteps, 3, 1, net.in_shape))
    expected = [value.numpy() for value in _run(form, net, x)]
    mean = functools.reduce(np.add, expected[0]) / np.float32(len(x))
    for name, ask, wanted in (
        ("model.onnx", _stream, expected),
        ("model.blocks.onnx", _block, expected),
        ("model.scan.onnx", _whole, [expected[0], mean]),
        ("model.unrolled.onnx", _whole, [expected[0], mean]),
    ):
        content = (tmp_path / name).read_bytes()
        for run in (*_sessions(content), ReferenceEvaluator(onnx.load(io.BytesIO(content))).run):
            assert all(map(np.array_equal, ask(run, manifest, x.numpy()), wanted)), name


def _sessions(content: bytes) -> Iterator[Any]:
    levels = ort.GraphOptimizationLevel
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1
        yield ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run


def _stream(run: Any, manifest: Manifest, x: Any) -> list[Any]:
    states = [np.full((x.shape[1], *s.shape), s.init, np.float32) for s in manifest.states]
    names = ["logits", *(s.next for s in manifest.states)]
    every = []
    for frame in x:
        feed = dict(zip((s.name for s in manifest.states), states, strict=True))
        logits, *states = run(names, {"x": frame, **feed})
        every.append(logits)
    return [np.stack(every), *states]


def _block(run: Any, manifest: Manifest, x: Any) -> list[Any]:
    rest = {s.name: np.full((x.shape[1], *s.shape), s.init, np.float32) for s in manifest.states}
    return list(run(["logits", *(s.next for s in manifest.states)], {"x": x, **rest}))


def _whole(run: Any, _manifest: Manifest, x: Any) -> list[Any]:
    return list(run(["logits", "mean_logits"], {"x": x}))


def test_one_wrong_bit_rejects_the_file(tmp_path: Path) -> None:
    """A bias that is off by one part in a million: not within any bound, but not equal."""
    net = _net("if hard")
    frames = FakeFrames(net)
    export_network(net, frames, tmp_path, ["onnx"], numerics="exact")
    model = onnx.load(str(tmp_path / "model.onnx"))
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size == 8:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(values * np.float32(1 + 1e-6), tensor.name)
            )
    stored = {entry.key: entry.value for entry in model.metadata_props}
    manifest = Manifest.from_strings(stored, "the file")
    trained = ExactProbe(net, frames.scale)
    probe = OnnxProbe(model, manifest, trained.net)
    with pytest.raises(ExportError, match=r"step 0: .* are not those of the exact form"):
        compare_exactly(trained, probe, events(4, 2, 1), ParityReport(steps=4, batches=(2,)))


def test_frames_are_clamped_to_8_bits() -> None:
    """What no camera gives is read as the closest thing that one could, so the certificate covers every input."""
    net = _net("if hard")
    form = exact_form(net, SCALE, WATCH).net
    wild = torch.full((1, 1, *net.in_shape), 1e9)
    assert _same(_run(form, net, wild)[:1], _run(form, net, torch.full_like(wild, 255 * SCALE))[:1])
