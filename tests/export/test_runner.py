"""The torch-free runner: streams, snapshots, and plain words for everything that does not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from zoo import Export, FakeFrames, events

from revedge import models
from revedge.errors import ExportError, UsageError
from revedge.export.formats import Choices
from revedge.export.inference import inference_form
from revedge.export.onnx_bytes import outline
from revedge.export.onnx_file import write_onnx
from revedge.export.onnx_operators import graphs
from revedge.export.runner import StreamRunner, open_session
from revedge.export.writer import manifest_of


@pytest.fixture
def runner(exported: Export) -> StreamRunner:
    """Return a runner of the exported network."""
    return StreamRunner(exported.folder / "model.onnx")


def _frames(batch: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return events(4, batch, seed, (2, 16, 16))


def test_sequence_is_the_mean_of_steps(runner: StreamRunner) -> None:
    """Bit for bit, and state is carried from step to step."""
    x = _frames(3)
    runner.reset(3)
    steps = [runner.step(frame) for frame in x]
    runner.reset(3)
    total = steps[0]
    for one in steps[1:]:
        total = total + one
    assert np.array_equal(runner.sequence(x), total / np.float32(4))
    assert runner.steps_done == 4
    runner.reset(3)
    first = runner.step(x[0])
    assert not np.array_equal(runner.step(x[0]), first), "the same frame again meets another state"


def test_snapshot_resumes_the_stream(runner: StreamRunner, exported: Export) -> None:
    """Another runner goes on from state_dict as if nothing had happened; the snapshot is a copy."""
    x = _frames(2)
    runner.reset(2)
    runner.step(x[0])
    snapshot = runner.state_dict()
    expected = [runner.step(frame) for frame in x[1:]]
    other = StreamRunner(exported.folder / "model.onnx")
    other.load_state_dict(snapshot)
    for frame, logits in zip(x[1:], expected, strict=True):
        assert np.array_equal(other.step(frame), logits)


def test_what_does_not_fit_is_said(runner: StreamRunner) -> None:
    """No reset, another batch, shape or dtype: each has its message, and none changes the state."""
    x = _frames(2)
    with pytest.raises(UsageError, match=r"call reset\(batch\)"):
        runner.step(x[0])
    with pytest.raises(UsageError, match="call reset"):
        runner.state_dict()
    runner.reset(2)
    before = runner.state_dict()
    with pytest.raises(UsageError, match=r"call reset\(1\) first"):
        runner.step(x[0][:1])
    with pytest.raises(UsageError, match="float32"):
        runner.step(x[0].astype(np.float64))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="float32"):
        runner.step([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not fit"):
        runner.step(x[0][:, :, :8])
    with pytest.raises(UsageError, match="T, B, C, H, W"):
        runner.sequence(x[0])
    with pytest.raises(UsageError, match="use 1 or more"):
        runner.reset(0)
    with pytest.raises(UsageError, match="use fewer"):
        runner.reset(10**9)
    assert all(np.array_equal(before[name], value) for name, value in runner.state_dict().items())


def test_snapshot_of_another_model_is_refused(runner: StreamRunner) -> None:
    """Names, shapes and dtypes must be those of the file."""
    runner.reset(1)
    states = runner.state_dict()
    with pytest.raises(UsageError, match="'state_0' is not in both"):
        runner.load_state_dict({k: v for k, v in states.items() if k != "state_0"})
    with pytest.raises(UsageError, match="state_1"):
        runner.load_state_dict({**states, "state_1": states["state_1"][:, :1]})
    with pytest.raises(UsageError, match="float64"):
        runner.load_state_dict({**states, "state_2": states["state_2"].astype(np.float64)})  # type: ignore[dict-item]


def test_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    """Exit code 2, as for anything that is not there."""
    with pytest.raises(UsageError, match=r"none\.onnx does not exist"):
        StreamRunner(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="is a folder; name an ONNX file"):
        StreamRunner(tmp_path)


def test_threads_have_a_limit(exported: Export) -> None:
    """10,000 threads took a minute to start, and then waited for each other."""
    for threads in (0, 257, 10**6):
        with pytest.raises(UsageError, match=f"threads={threads} is not .* use 1 to 256"):
            StreamRunner(exported.folder / "model.onnx", threads=threads)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_file_is_an_export_error(exported: Export, share: float, tmp_path: Path) -> None:
    """One line that names the file."""
    content = (exported.folder / "model.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ExportError, match=r"cut\.onnx") as found:
        StreamRunner(path)
    assert "\n" not in str(found.value)


def _changed(exported: Export, tmp_path: Path, key: str, value: str | None) -> Path:
    model = onnx.load(str(exported.folder / "model.onnx"))
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    if value is not None:
        kept[key] = value
    del model.metadata_props[:]
    for name, text in kept.items():
        model.metadata_props.add(key=name, value=text)
    onnx.save(model, str(tmp_path / "changed.onnx"))
    return tmp_path / "changed.onnx"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", "2", "metadata schema 2, this revedge reads 1"),
        ("schema", None, "carries no revedge metadata"),
        ("states", "[]", "other inputs or outputs"),
        ("states", '[{"name": 3}]', "metadata .* damaged"),
        ("states", "[", "metadata .* damaged"),
        ("input", '{"shape": [2, -16, 16], "scale": 1, "static": false}', "metadata .* damaged"),
        ("timesteps", "1e99", "metadata .* damaged"),
        ("graph", "scan", "other inputs or outputs"),
        ("graph", "stream", "the runner knows step, blocks"),
        ("graph", "s" * 500, "is a 's{20}' graph; the runner knows step"),
        (
            "schema",
            '"' + "2" * 500 + '"',
            "schema '2{39}, this revedge reads 1; export the model again",
        ),
        ("schema", "9", "schema 9, this revedge reads 1; update revedge"),
        ("input", '{"shape": [2, 16, 16], "scale": NaN, "static": false}', "metadata .* damaged"),
        ("input", '{"shape": [2, 16, 16], "scale": 1, "static": "no"}', "metadata .* damaged"),
        ("classes", '{"count": 5, "names": ["a\\nb"]}', "metadata .* damaged"),
        ("classes", '{"count": 5, "names": ["\\u001b[2J"]}', "metadata .* damaged"),
        ("classes", '{"count": 4, "names": []}', r"gives logits of shape \(5,\) .* say \(4,\)"),
        ("data", "two\nlines", "metadata .* damaged"),
    ],
)
def test_metadata_that_lie_are_found(
    exported: Export, key: str, value: str | None, words: str, tmp_path: Path
) -> None:
    """A file of another schema, of no revedge, or with damaged metadata is refused with its reason."""
    with pytest.raises(ExportError, match=words):
        StreamRunner(_changed(exported, tmp_path, key, value))


def test_state_shape_that_lies_is_found(exported: Export, tmp_path: Path) -> None:
    """Metadata with a smaller state than the graph's, or a larger one that would not fit into memory."""
    model = onnx.load(str(exported.folder / "model.onnx"))
    states = json.loads({entry.key: entry.value for entry in model.metadata_props}["states"])
    for shape in ([1, 1, 1], [2**20, 16, 16]):
        states[0]["shape"] = shape
        with pytest.raises(ExportError, match=r"takes state_0 of shape .* per stream"):
            StreamRunner(_changed(exported, tmp_path, "states", json.dumps(states)))


def test_runner_imports_nothing_heavy(exported: Export, run_python) -> None:  # type: ignore[no-untyped-def]
    """Neither torch nor onnx; and before a file is opened not even onnxruntime."""
    code = (
        "import sys; from revedge.export.runner import StreamRunner; "
        "assert not {'torch', 'onnx', 'onnxruntime', 'tonic'} & set(sys.modules); "
        f"r = StreamRunner({str(exported.folder / 'model.onnx')!r}); r.reset(2); "
        "import numpy as np; print(r.step(np.ones((2, 2, 16, 16), np.float32)).shape); "
        "assert not {'torch', 'onnx', 'tonic'} & set(sys.modules)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 5)"


@pytest.mark.parametrize("graph", ["blocks", "scan", "unrolled"])
def test_sequence_graphs_give_the_loop(runner: StreamRunner, exported: Export, graph: str) -> None:
    """The same mean logits, bit for bit."""
    x = _frames(3, seed=4)
    runner.reset(3)
    other = StreamRunner(exported.folder / f"model.{graph}.onnx")
    other.reset(3)
    assert np.array_equal(other.sequence(x), runner.sequence(x))
    assert other.steps_done == 4


def test_blocks_and_steps_share_one_stream(runner: StreamRunner, exported: Export) -> None:
    """A snapshot of one goes on in the other; single steps work in blocks, too."""
    x = _frames(2, seed=5)
    runner.reset(2)
    expected = [runner.step(frame) for frame in x]
    blocks = StreamRunner(exported.folder / "model.blocks.onnx")
    blocks.reset(2)
    assert np.array_equal(blocks.step(x[0]), expected[0])
    runner.load_state_dict(blocks.state_dict())
    assert np.array_equal(runner.step(x[1]), expected[1])
    blocks.load_state_dict(runner.state_dict())
    mean = (expected[2] + expected[3]) / np.float32(2)
    assert np.array_equal(blocks.sequence(x[2:]), mean)


@pytest.mark.parametrize("graph", ["scan", "unrolled"])
def test_whole_recordings_begin_at_rest(exported: Export, graph: str) -> None:
    """No steps, no states, and a reset between recordings: each is said."""
    whole = StreamRunner(exported.folder / f"model.{graph}.onnx")
    x = _frames(1)
    with pytest.raises(UsageError, match="call reset"):
        whole.sequence(x)
    whole.reset(1)
    with pytest.raises(UsageError, match="whole recordings only"):
        whole.step(x[0])
    with pytest.raises(UsageError, match="shows no states"):
        whole.state_dict()
    first = whole.sequence(x)
    with pytest.raises(UsageError, match="always begins at rest"):
        whole.sequence(x)
    whole.reset(1)
    assert np.array_equal(whole.sequence(x), first)


def test_low_memory_gives_the_same_answers(runner: StreamRunner, exported: Export) -> None:
    """Convolutions in another layout may round otherwise; 0.02 is far below what a wrong state would cost."""
    x = _frames(2)
    lean = StreamRunner(exported.folder / "model.onnx", low_memory=True)
    for one in (runner, lean):
        one.reset(2)
    assert np.allclose(lean.sequence(x), runner.sequence(x), atol=0.02)


def test_sessions_are_set_for_their_graph(exported: Export) -> None:
    """One block of memory for sequences only; weights of 8 bits multiplied out once, unless memory is short."""
    kinds = {}
    for graph, low in (("onnx", False), ("scan.onnx", False), ("scan.onnx", True)):
        options = StreamRunner(
            exported.folder / f"model.{graph}", low_memory=low
        )._session.get_session_options()
        folded = options.get_session_config_entry("session.disable_quant_qdq")
        kinds[graph, low] = (options.enable_mem_pattern, folded)
    assert kinds == {
        ("onnx", False): (False, "1"),
        ("scan.onnx", False): (True, "1"),
        ("scan.onnx", True): (False, "0"),
    }


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a step and a Scan whose weights are large enough to stay in the file."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(5)
    net = models.create("vgg5", in_shape=(2, 16, 16), num_classes=3, timesteps=2, width=48)
    for kind in ("onnx", "onnx-scan"):
        manifest = manifest_of(net.eval(), FakeFrames(net), "fake", kind, Choices(opset=18))
        write_onnx(inference_form(net), manifest, folder / f"{kind}.onnx")
    return folder


@pytest.mark.parametrize("kind", ["onnx", "onnx-scan"])
def test_outline_is_the_file_without_its_weights(kind: str, wide: Path) -> None:
    """Put back, they make the same model; what is read through the outline gives the same bits."""
    path = wide / f"{kind}.onnx"
    content = path.read_bytes()
    model = onnx.load_from_string(outline(path))
    count = 0
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                count += 1
                begin, length = int(place["offset"]), int(place["length"])
                assert place["location"] == path.name
                tensor.raw_data = content[begin : begin + length]
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
    assert count
    assert len(outline(path)) < len(content) // 4
    assert model == onnx.load_from_string(content)
    feed: dict[str, Any] = {
        one.name: np.ones([1 if isinstance(size, str) else size for size in one.shape], np.float32)
        for one in open_session(content).get_inputs()
    }
    found, expected = (open_session(one).run(None, feed) for one in (path, content))
    assert all(map(np.array_equal, found, expected))


def test_weights_that_do_not_fit_their_place_are_refused(wide: Path, tmp_path: Path) -> None:
    """More or less than the shape says, or a file that ends before them: one line, no crash."""
    model = onnx.load(wide / "onnx.onnx")
    large = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    whole = large.raw_data
    for name, raw in (("less", whole[:-64]), ("more", whole + bytes(64))):
        large.raw_data = raw
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    content = (wide / "onnx.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    for path in sorted(tmp_path.glob("*.onnx")):
        with pytest.raises(ExportError, match="damaged"):
            open_session(path)


def test_a_file_that_is_replaced_meanwhile_is_refused(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of one model in the outline of another would be wrong numbers."""
    path = tmp_path / "model.onnx"
    path.write_bytes((wide / "onnx.onnx").read_bytes())

    def then_replaced(of: Path) -> bytes:
        found = outline(of)
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes())
        other.replace(path)
        return found

    monkeypatch.setattr("revedge.export.session.outline", then_replaced)
    with pytest.raises(ExportError, match="replaced"):
        open_session(path)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_cannot_be_used_is_an_error(
    exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library is missing, say: onnxruntime would go on with the CPU, and a check would check something else."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ExportError, match="CUDAExecutionProvider cannot be used on this machine"):
        StreamRunner(exported.folder / "model.onnx", provider="cuda")
