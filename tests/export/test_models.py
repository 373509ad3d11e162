"""Members of the registry through the whole exporter, opset 18: files, metadata, report."""

import importlib.metadata
import json
from pathlib import Path

import onnx
import pytest
import torch
from zoo import Export, FakeFrames, digest, settle

from revedge import models
from revedge.errors import ExportError, UsageError
from revedge.export.formats import choices, parse_formats
from revedge.export.manifest import SCHEMA, Manifest
from revedge.export.torchscript import read_torchscript
from revedge.export.writer import export_network

_MEMBERS = {
    "ms-resnet6": {"width": 8, "neuron": "plif"},
    "vgg5": {"width": 8},
    "vgg5 reversible": {"width": 8, "neuron": "reversible"},
    "revsresnet11 static": {"width": 8, "static": True},
    "revsformer-2-384": {"width": 16, "heads": 2},
    "resnet50": {"width": 4, "depth": 5},
    "preact-resnet18": {"width": 4},
    "plif-net7": {"width": 8},
}


@pytest.mark.parametrize("member", list(_MEMBERS))
def test_member_exports_and_agrees(member: str, tmp_path: Path) -> None:
    """Both formats pass the comparison, no prediction changes, the network stays as it was."""
    options = {"in_shape": (2, 16, 16), "num_classes": 5, "timesteps": 4, **_MEMBERS[member]}
    torch.manual_seed(6)
    net = settle(models.create(member.split()[0], **options))  # type: ignore[arg-type]
    before = digest(net)
    files = export_network(net, FakeFrames(net), tmp_path)
    assert [file.format for file in files] == ["torchscript", "onnx"]
    for file in files:
        assert file.parity.argmax_changed == 0
        assert file.parity.test_samples == 24
        assert file.parity.largest_share_of_bound <= 1
        assert file.parity.twin_identical
    assert digest(net) == before


def test_onnx_file_is_what_was_asked_for(exported: Export) -> None:
    """Names, dims, opset and metadata are those of the written format; nothing names this machine's source files."""
    path = exported.folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    count = len(exported.net.state_spec())
    assert [v.name for v in model.graph.input] == ["x", *(f"state_{i}" for i in range(count))]
    assert [v.name for v in model.graph.output] == [
        "logits",
        *(f"next_state_{i}" for i in range(count)),
    ]
    assert all(
        v.type.tensor_type.shape.dim[0].dim_param == "batch"
        for v in [*model.graph.input, *model.graph.output]
    )
    assert [entry.version for entry in model.opset_import] == [18]
    assert b".py" not in path.read_bytes()
    stored = {entry.key: entry.value for entry in model.metadata_props}
    assert stored["schema"] == str(SCHEMA) == "1"
    manifest = Manifest.from_strings(stored, "file")
    assert [s.path for s in manifest.states] == [s.name for s in exported.net.state_spec()]
    assert (manifest.timesteps, manifest.grid_bits, manifest.input_scale) == (4, 14, 0.25)
    assert models.create(**manifest.model).config == exported.net.config
    assert json.loads(stored["versions"])["torch"] == importlib.metadata.version("torch")


def test_torchscript_files_carry_the_same_metadata(exported: Export) -> None:
    """Step and stream differ in the kind of graph only."""
    step = read_torchscript(exported.folder / "model.step.pt")[1]
    stream = read_torchscript(exported.folder / "model.stream.pt")[1]
    assert (step.pop("graph"), stream.pop("graph")) == ("step", "stream")
    assert step == stream
    assert step["schema"] == SCHEMA


def test_report_is_written(exported: Export) -> None:
    """model.export.json holds flips for every neuron of every file."""
    report = json.loads((exported.folder / "model.export.json").read_text())
    assert report["errors"] == []
    for parity in report["parity"].values():
        assert list(parity["flips_per_layer"]) == [s.name for s in exported.net.state_spec()]
        assert parity["compared_spikes"] > 100_000


def test_mistyped_format_names_the_close_one() -> None:
    """A usage error with a hint, for nearly right and for quite wrong words."""
    with pytest.raises(UsageError, match="did you mean onnx"):
        parse_formats("onyx")
    with pytest.raises(UsageError, match="did you mean torchscript"):
        parse_formats("onnx,torchscrpt")
    with pytest.raises(UsageError, match="choose from torchscript, onnx, onnx-scan"):
        parse_formats("zzzzzz")
    assert parse_formats(" ONNX , onnx") == ("onnx",)


def test_opset_out_of_range_is_refused() -> None:
    """The range is named."""
    with pytest.raises(UsageError, match="13 to 23"):
        choices(["onnx"], opset=12)


@pytest.mark.parametrize("opset", [13, 17])
def test_older_opsets_are_what_they_say(exported: Export, opset: int, tmp_path: Path) -> None:
    """Asked equals got, and the comparison passes."""
    chosen = choices(["onnx"], opset=opset)
    files = export_network(exported.net, exported.frames, tmp_path, ["onnx"], choices=chosen)
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert [entry.version for entry in model.opset_import] == [opset]
    assert files[0].parity.argmax_changed == 0


def test_changed_prediction_rejects_the_file(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network whose own forward disagrees with its step: the files are renamed, the error names the count."""
    forward = models.SpikingNet.forward
    monkeypatch.setattr(models.SpikingNet, "forward", lambda self, x: -forward(self, x))
    with pytest.raises(ExportError, match=r"24 of 24 predictions .* kept as model\.onnx\.rejected"):
        export_network(exported.net, exported.frames, tmp_path, ["onnx"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "golden.npz",
        "model.export.json",
        "model.onnx.rejected",
    ]
    assert "24 of 24" in json.loads((tmp_path / "model.export.json").read_text())["errors"][0]


def test_a_failure_before_writing_leaves_the_earlier_file(exported: Export, tmp_path: Path) -> None:
    """An export into the same folder that is refused: the good file of before keeps name and bytes."""
    export_network(exported.net, exported.frames, tmp_path, ["onnx"])
    good = (tmp_path / "model.onnx").read_bytes()
    chosen = choices(["onnx"], weights="int8")
    with pytest.raises(ExportError, match="--numerics exact") as refused:
        export_network(exported.net, exported.frames, tmp_path, ["onnx"], choices=chosen)
    assert "rejected" not in str(refused.value)
    assert (tmp_path / "model.onnx").read_bytes() == good
    assert not list(tmp_path.glob("*.rejected"))
