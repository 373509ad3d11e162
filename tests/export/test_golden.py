"""The check on the target: passes on what was exported, finds what a runtime may get wrong, survives damaged files."""

import dataclasses
import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn
from zoo import KINDS, Export, FakeFrames, rewritten

from revedge.errors import ExportError, UsageError
from revedge.export import import_module
from revedge.export.formats import Choices
from revedge.export.golden_check import GoldenReport, check_golden
from revedge.export.writer import export_network
from revedge.neurons import IFNode

_FILES = ("model.onnx", "model.blocks.onnx", "model.scan.onnx", "model.unrolled.onnx")


@pytest.mark.parametrize("file", _FILES)
def test_exported_file_passes(exported: Export, file: str) -> None:
    """Step by step where states are shown, as a whole always."""
    report = check_golden(exported.folder / file, exported.folder / "golden.npz")
    shown = file in _FILES[:2]
    assert report.compared_steps == (8 if shown else 0)
    assert (report.compared_values > 50_000) == shown
    assert report.flipped_steps <= 1
    assert report.largest_share_of_bound <= 1
    assert report.argmax_changed == 0


def _spoiled(exported: Export, folder: Path, spoil: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(str(exported.folder / "model.onnx"))
    spoil(model)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def _scaled(rank: int, factor: float) -> Callable[[onnx.ModelProto], None]:
    def spoil(model: onnx.ModelProto) -> None:
        tensor = [one for one in model.graph.initializer if len(one.dims) == rank][1]
        values = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return spoil


def _threshold(model: onnx.ModelProto) -> None:
    fire = next(node for node in model.graph.node if node.op_type == "HardSigmoid")
    line = {one.name: one for one in fire.attribute}
    line["beta"].f = -1.05 * line["alpha"].f


def _half_precision(model: onnx.ModelProto) -> None:
    """Weights in half precision: what a runtime does that was told to hurry."""
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("spoil", [_scaled(4, 1.01), _threshold, _half_precision])
def test_another_computation_is_found(
    exported: Export, spoil: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    """Weights off by 1 %, a threshold off by 5 %, half precision."""
    model = _spoiled(exported, tmp_path, spoil)
    with pytest.raises(ExportError, match="something else than the file says"):
        check_golden(model, exported.folder / "golden.npz")


def test_decision_that_differs_is_found(exported: Export, tmp_path: Path) -> None:
    """In a file that shows no states."""
    model = onnx.load(str(exported.folder / "model.scan.onnx"))
    mean = next(node for node in model.graph.node if node.output[0] == "mean_logits")
    mean.output[0] = "mean"
    model.graph.node.append(onnx.helper.make_node("Neg", ["mean"], ["mean_logits"]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(ExportError, match="2 of 2 decisions"):
        check_golden(tmp_path / "model.onnx", exported.folder / "golden.npz")


def test_logits_that_are_no_numbers_are_found(exported: Export, tmp_path: Path) -> None:
    """Those of a step, and means of which the largest is infinite, so that the decision is still the network's."""
    node = onnx.helper.make_node
    model = onnx.load(str(exported.folder / "model.onnx"))
    next(one for one in model.graph.node if one.output[0] == "logits").output[0] = "ours"
    model.graph.node.append(node("Log", ["ours"], ["logits"]))  # some are negative
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(ExportError, match="step 0: logits is not finite"):
        check_golden(tmp_path / "model.onnx", exported.folder / "golden.npz")
    model = onnx.load(str(exported.folder / "model.scan.onnx"))
    next(one for one in model.graph.node if one.output[0] == "mean_logits").output[0] = "mean"
    for name, value in (("one", np.array([1], np.int64)), ("inf", np.array(np.inf, np.float32))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node.extend(
        [
            node("ReduceMax", ["mean", "one"], ["most"]),
            node("Equal", ["mean", "most"], ["decided"]),
            node("Where", ["decided", "inf", "mean"], ["mean_logits"]),
        ]
    )
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(ExportError, match=r"0 of 2 decisions .* inf"):
        check_golden(tmp_path / "model.onnx", exported.folder / "golden.npz")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"version": 9}, "golden version 9, this revedge reads 1; update revedge here"),
        ({"version": 0}, "golden version 0, this revedge reads 1; export the model again"),
        ({"version": "x" * 500}, "golden version 'x{39}, this revedge reads 1; export"),
        ({"version": True}, "golden version True"),
        ({"numerics": "exact"}, "of numerics 'exact', the model of numerics float"),
        ({"steps": 4.5}, "damaged"),
        ({"logits": np.full((4, 2, 5), np.nan, np.float32)}, "damaged"),
        ({"bounds": np.full(11, np.inf, np.float32)}, "damaged"),
        ({"network": "0"}, "another network"),
        ({"steps": 10**9}, "damaged"),
        ({"batch": -1}, "damaged"),
        ({"state_steps": 0}, "damaged"),
        ({"steps": "four"}, "damaged"),
        ({"logits": None}, "damaged"),
        ({"logits": np.zeros((4, 2, 5))}, "damaged"),
        ({"bounds": np.full(11, -1, np.float32)}, "damaged"),
        ({"state_0": np.zeros(3, np.float32)}, "damaged"),
        ({"x": np.array([None], object)}, "damaged"),
    ],
)
def test_golden_file_that_lies_is_refused(
    exported: Export, changed: dict[str, object], words: str, tmp_path: Path
) -> None:
    """Another version, network or shape; nothing is unpickled."""
    golden = rewritten(exported, tmp_path / "golden.npz", **changed)
    with pytest.raises(ExportError, match=words):
        check_golden(exported.folder / "model.onnx", golden)


def test_untouched_rewrite_still_passes(exported: Export, tmp_path: Path) -> None:
    """So that the test above fails for its reason."""
    golden = rewritten(exported, tmp_path / "golden.npz")
    check_golden(exported.folder / "model.onnx", golden)


def test_mutated_golden_files_are_errors_or_pass(exported: Export, tmp_path: Path) -> None:
    """200 copies, cut or with changed bytes: an error of ours, or a pass where nothing that counts was hit."""
    content = (exported.folder / "golden.npz").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "golden.npz"
    ends = {"passed": 0, "refused": 0}
    for trial in range(200):
        mutant = bytearray(content)
        if trial % 4 == 0:
            mutant = mutant[: int(rng.integers(0, len(mutant)))]
        else:
            # Every other one is hit in the directory of the archive or in the first headers.
            last = len(mutant) if trial % 2 else 400
            for place in rng.integers(0 if trial % 2 else -400, last, 3):
                mutant[place] = int(rng.integers(0, 256))
        path.write_bytes(mutant)
        try:
            check_golden(exported.folder / "model.onnx", path)
        except ExportError:
            ends["refused"] += 1
        else:
            ends["passed"] += 1
    assert ends["refused"] > 100


def test_missing_golden_file_is_a_usage_error(exported: Export, tmp_path: Path) -> None:
    """With the name of the file."""
    with pytest.raises(UsageError, match=r"no\.npz does not exist"):
        check_golden(exported.folder / "model.onnx", tmp_path / "no.npz")


def test_large_claim_is_not_believed(exported: Export, tmp_path: Path) -> None:
    """Frames that claim 4 GB, in agreement with the description, over 8 bytes: refused before memory is taken."""
    golden = rewritten(exported, tmp_path / "golden.npz", steps=10**6)
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 2, 2, 16, 16)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(golden) as old, zipfile.ZipFile(tmp_path / "big.npz", "w") as new:
        for name in old.namelist():
            big = name == "x.npy"
            new.writestr(name, header.getvalue() + bytes(8) if big else old.read(name))
    tracemalloc.start()
    with pytest.raises(ExportError, match="damaged"):
        check_golden(exported.folder / "model.onnx", tmp_path / "big.npz")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 << 20


def test_what_inflates_is_not_read(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is of all arrays together: many, each below it, may be zeros in a small file."""
    golden = exported.folder / "golden.npz"
    with zipfile.ZipFile(golden) as archive:
        sizes = [member.file_size for member in archive.infolist()]
    monkeypatch.setattr("revedge.export.golden_check._LARGEST_BYTES", sum(sizes))
    check_golden(exported.folder / "model.onnx", golden)
    assert max(sizes) < sum(sizes) - 1
    monkeypatch.setattr("revedge.export.golden_check._LARGEST_BYTES", sum(sizes) - 1)
    with pytest.raises(ExportError, match="damaged"):
        check_golden(exported.folder / "model.onnx", golden)


@pytest.mark.parametrize(
    ("fixed", "words"),
    [("batch", "of batch 2, .* of batch 3"), ("steps", "of steps 4, .* of steps 3")],
)
def test_golden_file_of_another_shape_is_named(
    exported: Export, fixed: str, words: str, tmp_path: Path
) -> None:
    """A file of a fixed batch, or of fixed steps, beside the golden file of an export without."""
    out = tmp_path / "other"
    kind, chosen = {
        "batch": ("onnx", Choices(batch=3)),
        "steps": ("onnx-unrolled", Choices(steps=3)),
    }[fixed]
    file = export_network(exported.net, exported.frames, out, [kind], choices=chosen)[0]
    check_golden(file.paths[0], out / "golden.npz")
    with pytest.raises(ExportError, match=words):
        check_golden(file.paths[0], exported.folder / "golden.npz")


def test_one_class_has_a_golden_file(tmp_path: Path) -> None:
    """No other decision is near, so any recordings do."""
    net = import_module(
        nn.Sequential(nn.Flatten(), nn.Linear(8, 3), IFNode(step_mode="s"), nn.Linear(3, 1)),
        in_shape=(2, 2, 2),
        timesteps=3,
    )
    export_network(net, FakeFrames(net), tmp_path, ["onnx"])
    assert check_golden(tmp_path / "model.onnx", tmp_path / "golden.npz").compared_steps == 6


def test_report_names_everything() -> None:
    """The keys that `verify-export --json` prints."""
    assert set(dataclasses.asdict(GoldenReport())) == {
        "compared_values",
        "compared_steps",
        "flipped_steps",
        "spike_flips",
        "largest_share_of_bound",
        "argmax_changed",
        "max_logit_difference",
    }


def test_exact_numerics_demand_every_bit(tmp_path: Path) -> None:
    """Bounds are 0: the files pass, and one weight of the readout off by 2 % does not."""
    net = KINDS["coupling, two blocks"]()
    formats = ["onnx", "onnx-scan"]
    export_network(net, FakeFrames(net), tmp_path, formats, numerics="exact")
    golden = tmp_path / "golden.npz"
    report = check_golden(tmp_path / "model.onnx", golden)
    assert report.compared_values > 10_000
    assert report.largest_share_of_bound == 0
    assert check_golden(tmp_path / "model.scan.onnx", golden).max_logit_difference == 0
    with np.load(golden) as archive:
        moved, jump = archive["state_0"], archive["jumps"][0]
        assert not archive["bounds"].any()
    moved[-1, 0].reshape(-1)[0] += jump  # no step begins behind the last
    exact = Export(net, FakeFrames(net), tmp_path, [])
    flipped = rewritten(exact, tmp_path / "moved.npz", state_0=moved)
    with pytest.raises(ExportError, match=r"1 of \d+ steps have spikes that are not"):
        check_golden(tmp_path / "model.onnx", flipped)
    for file in ("model.onnx", "model.scan.onnx"):
        model = onnx.load(str(tmp_path / file))
        graphs = [model.graph, *(a.g for n in model.graph.node for a in n.attribute)]
        tensor = [one for g in graphs for one in g.initializer if len(one.dims) == 2][-1]
        values = numpy_helper.to_array(tensor).copy()
        place = np.unravel_index(np.abs(values).argmax(), values.shape)
        values[place] *= np.float32(0.98)  # a few of 127 levels; less is rounded away again
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, str(tmp_path / file))
        with pytest.raises(ExportError, match="trained network"):
            check_golden(tmp_path / file, golden)
