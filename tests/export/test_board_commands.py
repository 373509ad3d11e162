"""`run --input`, `run --stream`, `inspect`, `verify-export`: where torch, tonic and onnx cannot be had."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from zoo import Export

from revedge.data.event_files import Events, events_of
from revedge.data.event_frames import frames_of
from revedge.export.inference import inference_form
from revedge.export.runner import StreamRunner
from revedge.models.energy import measure_cost

Board = Callable[..., subprocess.CompletedProcess[str]]

_BOARD = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "tonic", "onnx", "sklearn", "safetensors", "aedat"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from revedge.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def short_board(board: Board, monkeypatch: pytest.MonkeyPatch) -> Board:
    """Return the same command where 20 MB are free."""
    patch = """
from revedge.devices import meter
meter.available_bytes = lambda: 20_000_000
from revedge.cli.main import main
"""
    monkeypatch.setitem(
        globals(), "_BOARD", _BOARD.replace("from revedge.cli.main import main\n", patch)
    )
    return board


@pytest.fixture
def board(tmp_path: Path, child_env: dict[str, str]) -> Board:
    """Return the command as on a board that has numpy and onnxruntime only."""
    missing = tmp_path / "missing"  # for the child that reads recordings
    missing.mkdir()
    (missing / "aedat.py").write_text("raise ModuleNotFoundError('no aedat', name='aedat')")
    path = os.pathsep.join(filter(None, [str(missing), child_env.get("PYTHONPATH")]))

    def run(*words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _BOARD, *map(str, words)],
            cwd=tmp_path,
            env={**child_env, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def _recording() -> Events:
    rng = np.random.default_rng(2)
    t = np.sort(rng.integers(0, 400_000, 3000))
    x, y = rng.integers(0, 16, (2, 3000))
    return events_of(t, x, y, rng.integers(0, 2, 3000))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Return a file of 0.4 s of events on 16 x 16 pixels."""
    np.savez(tmp_path / "one.npz", events=_recording())
    return tmp_path / "one.npz"


def _expected(exported: Export, events: Events, span: tuple[int, int] | None = None) -> list[float]:
    runner = StreamRunner(exported.folder / "model.onnx")
    runner.reset(1)
    frames = frames_of(events, (2, 16, 16), 4, span)[:, None].astype(np.float32)
    return [float(v) for v in runner.sequence(frames * np.float32(0.25))[0]]


def _answer(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _error(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("revedge: error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("graph", ["", ".blocks", ".scan", ".unrolled"])
def test_recording_is_decided(board: Board, exported: Export, recording: Path, graph: str) -> None:
    """Every graph gives the logits of the runner on the frames of the training."""
    model = exported.folder / f"model{graph}.onnx"
    answer = _answer(board("run", model, "--input", recording, "--json"))
    (window,) = answer["windows"]  # type: ignore[misc]
    expected = _expected(exported, _recording())
    assert window["logits"] == expected
    assert window["class"] == f"class {int(np.argmax(expected))}"
    assert window["events"] == 3000
    assert answer["measured_peak_bytes"] < 120e6  # type: ignore[operator]


def test_memory_that_is_short_is_said(
    board: Board, short_board: Board, exported: Export, recording: Path
) -> None:
    """Where little is free the file is run as with --low-memory, in one line on standard error, and decides alike."""
    words = ("run", exported.folder / "model.onnx", "--input", recording)
    short = short_board(*words)
    assert short.returncode == 0
    assert "19.1 MiB are free" in short.stderr
    assert short.stderr.count("\n") == 1
    lean = board(*words, "--low-memory")
    assert short.stdout.split(",")[0] == lean.stdout.split(",")[0]


def test_stream_gives_one_line_per_window(board: Board, exported: Export, recording: Path) -> None:
    """As --input with the same window does; late events are counted, the summary goes to standard error."""
    events = _recording()
    rows = zip(*(events[name].tolist() for name in ("t", "x", "y", "p")), strict=True)
    text = "".join(f"{t} {x} {y} {p}\n" for t, x, y, p in rows)
    model = exported.folder / "model.onnx"
    words = ("--window-us", 100_000, "--json")
    done = board("run", model, "--stream", *words, stdin=text + "5 1 1 1\n")
    assert _answer(done)["late_events"] == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    answer = _answer(board("run", model, "--input", recording, *words))
    assert lines == answer["windows"]
    start = int(events["t"][0])
    assert [one["begin_us"] for one in lines] == [start + k * 100_000 for k in range(4)]
    first = events[events["t"] < start + 100_000]
    assert lines[0]["logits"] == _expected(exported, first, (start, start + 100_000))
    plain = board("run", model, "--stream", "--window-us", 100_000, stdin=text)
    assert plain.stdout.splitlines() == [
        f"{one['begin_us']}\t{one['class']}\t{one['events']}" for one in lines
    ]
    assert "4 windows" in plain.stderr


def test_stream_answers_before_it_ends(exported: Export, child_env: dict[str, str]) -> None:
    """The line of a window comes as soon as an event after it has arrived."""
    words = ["run", exported.folder / "model.onnx", "--stream", "--window-us", 1000]
    with subprocess.Popen(
        [sys.executable, "-c", _BOARD, *map(str, words)],
        env=child_env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("7 1 1 1\n1007 1 1 1\n")
        child.stdin.flush()
        assert child.stdout.readline().startswith("7\tclass")
        child.stdin.close()
        assert child.stdout.readline().startswith("1007\tclass")


def test_what_does_not_go_together(board: Board, exported: Export, recording: Path) -> None:
    """Usage errors: exit code 2 and one line."""
    model = exported.folder / "model.onnx"
    assert "needs --window-us" in _error(board("run", model, "--stream"), 2)
    assert "is not a length" in _error(board("run", model, "--stream", "--window-us", 0), 2)
    assert "goes with --input" in _error(
        board("run", model, "--data", "digits", "--window-us", 5), 2
    )
    assert "go with --data" in _error(board("run", model, "--input", recording, "--batch", 2), 2)
    assert "does not exist" in _error(board("run", model, "--input", "no.npz"), 2)
    (recording.parent / "a.aedat4").write_bytes(b"x")
    assert "revedge[aedat4]" in _error(board("run", model, "--input", "a.aedat4"), 2)
    assert "is a folder" in _error(board("run", exported.folder, "--stream"), 2)
    both = board("run", model, "--stream", "--input", recording)
    assert both.returncode == 2
    assert "not allowed with" in both.stderr


def test_other_formats_are_named(board: Board, exported: Export, tmp_path: Path) -> None:
    """No ONNX file, but nothing damaged either: what it is, and what to write instead, from all three commands."""
    kinds = {
        "model.step.pt": "a TorchScript file",
        "model.pt2": "a program of torch.export",
        "golden.npz": "an archive of arrays",
    }
    for name, kind in kinds.items():
        for words in (("run", "--stream", "--window-us", 9), ("inspect",), ("verify-export",)):
            done = board(words[0], exported.folder / name, *words[1:])
            assert f"{name} is {kind}" in (error := _error(done, 2))
            assert "--format onnx" in error
    (tmp_path / "model.nir").write_bytes(b"\x89HDF\r\n")
    assert "is a NIR graph" in _error(board("inspect", "model.nir"), 2)


def test_verify_export_on_a_provider(board: Board, exported: Export) -> None:
    """The one that was asked for, under either name; one that is not there is an error that lists what is."""
    model = exported.folder / "model.onnx"
    present = onnxruntime.get_available_providers()
    for name in present:
        short = name.removesuffix("ExecutionProvider").lower()
        found = _answer(board("verify-export", model, "--provider", short, "--json"))
        assert (found["verified"], found["provider"]) == (True, name)
    error = _error(board("verify-export", model, "--provider", "abacus"), 2)
    assert "provider 'abacus' is not in this onnxruntime" in error
    assert all(name in error for name in present)


@pytest.mark.parametrize(
    ("redirected", "code", "words"),
    [
        ("<&-", 2, "--stream reads standard input, which is closed"),
        ("</dev/null >&-", 0, None),
        ("</dev/null >/dev/full", 1, "no space left on device"),
    ],
)
def test_streams_that_are_closed_or_full(
    exported: Export, child_env: dict[str, str], redirected: str, code: int, words: str | None
) -> None:
    """Said in one line where something is lost by it."""
    model = exported.folder / "model.onnx"
    words_of_shell = (
        f'"$0" -m revedge.cli.main run {model} --stream --window-us 9 --json {redirected}'
    )
    done = subprocess.run(
        ["sh", "-c", words_of_shell, sys.executable],
        env={**child_env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if words is None:
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert "error" not in done.stderr
    else:
        assert words in _error(done, code)


def test_damaged_events_are_said(board: Board, exported: Export, recording: Path) -> None:
    """Exit code 1 and one line: a line that is no event, an event outside, a damaged recording."""
    model = exported.folder / "model.onnx"
    words = ("run", model, "--stream", "--window-us", 1000)
    assert "line 2 of the events" in _error(board(*words, stdin="1 1 1 1\n1 one 1 1\n"), 1)
    assert "outside of 16 x 16" in _error(board(*words, stdin="1 1 99 1\n"), 1)
    recording.write_bytes(recording.read_bytes()[:100])
    assert "one.npz is damaged" in _error(board("run", model, "--input", recording), 1)


def test_inspect_shows_metadata_and_states(board: Board, exported: Export) -> None:
    """In text and as JSON; operators need onnx, and that is said."""
    model = exported.folder / "model.onnx"
    text = board("inspect", model).stdout
    assert "state_0" in text
    assert "onnx" in next(line for line in text.splitlines() if line.startswith("operators"))
    answer = _answer(board("inspect", model, "--json"))
    states = answer["metadata"]["states"]  # type: ignore[index,call-overload]
    assert [one["path"] for one in states] == [s.name for s in exported.net.state_spec()]
    assert answer["state_bytes"] == 4 * sum(
        int(np.prod(s.shape)) for s in exported.net.state_spec()
    )
    assert answer["file_bytes"] == model.stat().st_size


def test_inspect_lists_operators_where_onnx_is(exported: Export, revedge_command: Board) -> None:
    """Those inside the body of Scan, too."""
    done = revedge_command("inspect", str(exported.folder / "model.scan.onnx"), "--json")
    answer = _answer(done)
    counts = answer["operators"]
    weights = sum(p.numel() for p in inference_form(exported.net).parameters())
    assert 4 * weights <= answer["constant_bytes"] < answer["file_bytes"]  # type: ignore[operator]
    assert counts["Scan"] == 1  # type: ignore[index,call-overload]
    assert counts["HardSigmoid"] == len(exported.net.state_spec())  # type: ignore[index,call-overload]


def test_inspect_shows_the_cost_of_this_network_only(
    board: Board, exported: Export, tmp_path: Path
) -> None:
    """Layer by layer, where the file beside the model is of the same network; else how to get one."""
    shutil.copy(exported.folder / "model.onnx", tmp_path / "model.onnx")
    network = StreamRunner(tmp_path / "model.onnx").manifest.network
    frames, batch = exported.frames, 4
    raw = frames.batch(frames.test_indices[:batch])[0]
    x = torch.from_numpy(raw.astype(np.float32) * np.float32(frames.scale))
    cost = {"network": network, **measure_cost(exported.net, [x], bytes_per_weight=4).to_dict()}
    (tmp_path / "model.cost.json").write_text(json.dumps(cost))
    text = board("inspect", "model.onnx").stdout
    for layer in cost["layers"]:
        assert layer["path"] in text
    assert "multiply-adds where" in text
    answer = _answer(board("inspect", "model.onnx", "--json"))
    assert answer["cost"] == cost
    (tmp_path / "model.cost.json").write_text(json.dumps({**cost, "network": "another"}))
    assert "revedge export RUN --cost" in board("inspect", "model.onnx").stdout


def test_verify_export_on_the_board(board: Board, exported: Export, tmp_path: Path) -> None:
    """Without torch; finds golden.npz beside the model; a model that does something else is exit code 1."""
    answer = _answer(board("verify-export", exported.folder / "model.onnx", "--json"))
    assert answer["verified"] is True
    assert answer["compared_steps"] == 8
    golden = exported.folder / "golden.npz"
    whole = _answer(
        board("verify-export", exported.folder / "model.scan.onnx", "--golden", golden, "--json")
    )
    assert whole["compared_steps"] == 0
    (tmp_path / "cut.npz").write_bytes(golden.read_bytes()[:999])
    words = ("verify-export", exported.folder / "model.onnx", "--golden", "cut.npz")
    assert "cut.npz is damaged" in _error(board(*words), 1)
    assert "does not exist" in _error(board("verify-export", "no.onnx"), 2)
