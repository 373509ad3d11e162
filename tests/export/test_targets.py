"""Targets, fixed batches and 8-bit weights: what is asked for is in the file, what does not go together is said."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from zoo import Export, FakeFrames, events

from revedge import models
from revedge.errors import ExportError, UsageError
from revedge.export import import_module, onnx_file
from revedge.export.exact_form import exact_form
from revedge.export.formats import Choices, choices
from revedge.export.int8_weights import as_int8
from revedge.export.manifest import Manifest
from revedge.export.onnx_file import write_onnx
from revedge.export.onnx_operators import operators
from revedge.export.runner import StreamRunner
from revedge.export.targets import TARGETS
from revedge.export.writer import exact_manifest, export_network, manifest_of
from revedge.models import SpikingNet
from revedge.neurons import IFNode

_FORMAT_OF = {
    "step": "onnx",
    "scan": "onnx-scan",
    "blocks": "onnx-blocks",
    "unrolled": "onnx-unrolled",
}


@pytest.mark.parametrize("target", list(TARGETS))
def test_preset_gives_what_its_runtime_reads(exported: Export, target: str, tmp_path: Path) -> None:
    """Opset, batch and operators of every graph that the target has; the comparison passes."""
    preset = TARGETS[target]
    formats = [_FORMAT_OF[graph] for graph in preset.graphs]
    chosen = choices(formats, target=target)
    files = export_network(exported.net, exported.frames, tmp_path, formats, choices=chosen)
    assert len(files) == len(formats)
    for file in files:
        model = onnx.load(str(file.paths[0]))
        assert model.opset_import[0].version == preset.opset
        assert set(operators(model)) <= preset.operators
        batch = model.graph.input[0].type.tensor_type.shape.dim[-4]
        assert (batch.dim_param, batch.dim_value) == (("", 1) if preset.batch else ("batch", 0))
        assert file.parity.argmax_changed == 0
        stored = {entry.key: entry.value for entry in model.metadata_props}
        assert stored["target"] == target


def test_jetson_files_have_no_control_flow_and_no_shapes() -> None:
    """The lists of TensorRT targets name neither Scan nor Shape: their files are static."""
    for target in ("jetpack5", "jetpack6"):
        assert not {"Scan", "Loop", "If", "Shape"} & TARGETS[target].operators
    assert "DequantizeLinear" not in TARGETS["generic"].operators


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({"target": "jetpak5"}, "did you mean jetpack5"),
        ({"target": "phone"}, "choose from ort"),
        ({"target": "jetpack5", "opset": 18}, "newer than what jetpack5 reads"),
        ({"target": "jetpack6", "batch": "dynamic"}, "needs a fixed batch"),
        ({"batch": "many"}, "neither a number"),
        ({"batch": "0"}, "neither a number"),
        ({"steps": 65}, "use 1 to 64"),
        ({"weights": "int4"}, "choose from float32, int8"),
    ],
)
def test_choices_that_do_not_go_together(words: dict[str, object], found: str) -> None:
    """Each is a usage error that names what would."""
    with pytest.raises(UsageError, match=found):
        choices(["onnx", "onnx-unrolled"], **words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("formats", "words"),
    [
        (["torchscript"], {"target": "jetpack6"}),
        (["torchscript", "nir"], {"opset": 17}),
        (["pt2"], {"weights": "int8"}),
        (["torchscript"], {"batch": "2"}),
        (["onnx", "onnx-scan"], {"steps": 4}),
    ],
)
def test_an_option_that_no_file_reads_is_refused(
    formats: list[str], words: dict[str, object]
) -> None:
    """Option and value are named, and what they are for."""
    (name, value), *_ = words.items()
    with pytest.raises(UsageError, match=f"--{name} {value} is for --format onnx.*leave it out"):
        choices(formats, **words)  # type: ignore[arg-type]


def test_graph_that_the_target_does_not_run() -> None:
    """The formats that it does run are named."""
    with pytest.raises(UsageError, match="use onnx, onnx-unrolled"):
        choices(["onnx-scan"], target="jetpack6")


def test_operator_outside_of_the_list_is_refused(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator and the target are named, and no file stays."""
    import dataclasses

    fewer = dataclasses.replace(TARGETS["ort"], operators=TARGETS["ort"].operators - {"Round"})
    monkeypatch.setattr(onnx_file, "TARGETS", {**TARGETS, "ort": fewer})
    with pytest.raises(ExportError, match="needs Round, which --target ort does not run"):
        export_network(exported.net, exported.frames, tmp_path, ["onnx"])
    assert not list(tmp_path.glob("model.*onnx"))


def test_fixed_batch_is_kept(exported: Export, tmp_path: Path) -> None:
    """24 samples in batches of 5: the last is filled up, and the runner refuses another batch."""
    chosen = choices(["onnx", "onnx-unrolled"], batch=5, steps=3)
    files = export_network(
        exported.net,
        exported.frames,
        tmp_path,
        ["onnx", "onnx-unrolled"],
        choices=chosen,
    )
    assert [file.parity.test_samples for file in files] == [24, 24]
    assert [file.parity.batches for file in files] == [(5,), (5,)]
    runner = StreamRunner(files[0].paths[0])
    with pytest.raises(UsageError, match="exported for 5"):
        runner.reset(1)
    unrolled = StreamRunner(files[1].paths[0])
    unrolled.reset(5)
    with pytest.raises(UsageError, match="4 steps does not fit"):
        unrolled.sequence(events(4, 5, 0, (2, 16, 16)))
    assert unrolled.sequence(events(3, 5, 0, (2, 16, 16))).shape == (5, 5)


def test_static_network_has_its_own_steps(tmp_path: Path) -> None:
    """No blocks, no other number of steps."""
    net = models.create(
        "vgg5", in_shape=(1, 8, 8), num_classes=3, timesteps=4, width=4, static=True
    )
    frames = FakeFrames(net)
    with pytest.raises(UsageError, match="use onnx-scan"):
        export_network(net, frames, tmp_path, ["onnx-blocks"])
    with pytest.raises(UsageError, match="looks at an image for 4"):
        manifest_of(net, frames, "", "onnx-unrolled", Choices(steps=5))


def _on_a_grid() -> SpikingNet:
    """A network whose weights, folded, are 8-bit integers times a power of two."""
    torch.manual_seed(0)
    net = models.create("vgg5", in_shape=(2, 16, 16), num_classes=5, timesteps=4, width=8)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                levels = torch.randint(-127, 128, module.weight.shape, generator=rng)
                module.weight.copy_(levels * 2.0**-9)
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return net.eval()


def test_8_bit_weights_are_the_same_network(tmp_path: Path) -> None:
    """The same logits bit for bit, from a file at most 0.35 times as large; the comparison passes."""
    net = _on_a_grid()
    frames = FakeFrames(net)
    found = []
    for weights in ("float32", "int8"):
        chosen = choices(["onnx", "onnx-scan"], weights=weights)
        out = tmp_path / weights
        files = export_network(net, frames, out, ["onnx", "onnx-scan"], choices=chosen)
        runner = StreamRunner(files[1].paths[0])
        runner.reset(3)
        found.append((runner.sequence(events(4, 3, 0, (2, 16, 16))), files[0].paths[0]))
    assert np.array_equal(found[0][0], found[1][0])
    model = onnx.load(str(found[1][1]))
    assert operators(model)["DequantizeLinear"] == 4
    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert sum(array.dtype == np.int8 and array.ndim > 1 for array in weights.values()) == 4
    sizes = [
        sum(len(one.raw_data) for one in onnx.load(str(path)).graph.initializer)
        for _, path in found
    ]
    assert sizes[1] <= 0.35 * sizes[0]


@pytest.mark.parametrize(
    ("target", "steps"), [("ort", 4), ("ort", 16), ("jetpack6", 16), ("jetpack5", 5)]
)
def test_unrolled_file_with_8_bit_weights_is_small(target: str, steps: int, tmp_path: Path) -> None:
    """At most 0.35 of the float32 file, whole file beside whole file; where functions are taken, at 16 steps too."""
    net = models.create(
        "revsresnet11", in_shape=(2, 16, 16), num_classes=10, timesteps=steps
    ).eval()
    exact, sizes = exact_form(net, 0.25), []
    for weights in ("float32", "int8"):
        chosen = choices(["onnx-unrolled"], weights=weights, target=target)
        manifest = manifest_of(net, FakeFrames(net), "", "onnx-unrolled", chosen)
        path = tmp_path / f"{weights}.onnx"
        write_onnx(exact.net, exact_manifest(manifest, exact.certificate), path)
        assert bool(onnx.load(str(path)).functions) == TARGETS[target].functions
        sizes.append(path.stat().st_size)
        names = {name for node in onnx.load(str(path)).graph.node for name in node.input}
        assert not [name for name in names if "weight" in name]  # in every step: letters
    assert sizes[1] <= 0.35 * sizes[0]


def test_attributes_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    """Of pools and convolutions, in every step of an unrolled file; what a pool does is told where it is not usual."""
    layers = [
        nn.Conv2d(2, 4, 2),
        IFNode(step_mode="s"),
        nn.AvgPool2d(2, 1),
        nn.MaxPool2d(2, ceil_mode=True),
    ]
    pools = [nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1), nn.Flatten(), nn.Linear(4, 3)]
    net = import_module(nn.Sequential(*layers, *pools), in_shape=(2, 4, 4), timesteps=2)
    export_network(net, FakeFrames(net), tmp_path, ["onnx"])
    told = [
        {one.name for one in node.attribute} - {"kernel_shape"}
        for node in onnx.load(str(tmp_path / "model.onnx")).graph.node
        if node.op_type in ("Conv", "AveragePool", "MaxPool")
    ]
    assert told == [set(), set(), {"strides", "ceil_mode"}, {"pads", "count_include_pad"}, {"pads"}]


def test_weights_off_the_grid_are_refused(exported: Export, tmp_path: Path) -> None:
    """Rather than changed; the layer is named."""
    chosen = choices(["onnx"], weights="int8")
    with pytest.raises(ExportError, match=r"runs\.0.*weight does not lie on a grid"):
        export_network(exported.net, exported.frames, tmp_path, ["onnx"], choices=chosen)


@pytest.mark.parametrize("seed", range(20))
def test_as_int8_gives_the_weight_back(seed: int) -> None:
    """Every channel with its own exponent, zeros and single values included."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(-127, 128, (6, 3, 3)).astype(np.float32)
    levels[0] = 0
    levels[1] *= rng.random((3, 3)) < 0.2
    scales = 2.0 ** rng.integers(-20, 4, (6, 1, 1))
    weight = (levels * scales).astype(np.float32)
    found, scale = as_int8(weight, "w")
    shape = (-1, 1, 1) if scale.ndim else ()
    assert np.array_equal(found.astype(np.float32) * scale.reshape(shape), weight)
    assert np.abs(found.astype(int)).max() <= 127
    assert np.all(np.log2(scale) % 1 == 0)
    off = weight.copy()
    off[3, 0, 0] = np.nextafter(np.float32(weight[3].max() / 3), np.float32(1))
    with pytest.raises(ExportError, match="w does not lie"):
        as_int8(off, "w")


def test_one_scale_where_one_does() -> None:
    """Channels of different size on a common grid share one scale."""
    weight = np.array([[127.0, -3.0], [1.0, 2.0]], np.float32) * np.float32(0.125)
    found, scale = as_int8(weight, "w")
    assert scale.ndim == 0
    assert float(scale) == 0.125
    assert found.tolist() == [[127, -3], [1, 2]]


def test_metadata_are_the_documented_keys(exported: Export, root: Path) -> None:
    """Every key of the file stands in the table of export/README.md, and none stands there that is not in the file."""
    strings = onnx.load(str(exported.folder / "model.scan.onnx")).metadata_props
    keys = {entry.key for entry in strings}
    text = (root / "export" / "README.md").read_text().split("## Metadata, schema 1")[1]
    rows = [line for line in text.split("## ")[0].splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == keys
    assert Manifest.from_strings({e.key: e.value for e in strings}, "").network
