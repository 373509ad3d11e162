"""`revedge export` and `revedge run` on a real run folder: output, exit codes, one-line errors."""

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from zoo import settle

from revedge import models
from revedge.devices.tensor_file import write_tensors

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with event frames of the user's own: 3 classes, 40 samples, 4 steps."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    np.savez(
        folder / "frames.npz",
        x=rng.poisson(0.6, (40, 4, 2, 12, 12)).astype(np.uint8),
        y=np.arange(40) % 3,
    )
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what training leaves: model.json and model.safetensors."""
    folder = tmp_path_factory.mktemp("run")
    net = settle(
        models.create("revsresnet11", in_shape=(2, 12, 12), num_classes=3, timesteps=4, width=4)
    )
    size_bytes, _ = write_tensors(folder / "model.safetensors", net.state_dict())
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    description = {
        "format": "revedge-model",
        "version": 1,
        "config": net.config,
        "data": {"name": "npz", "timesteps": 4, "scale": 1.0},
        "size_bytes": size_bytes,
        "sha256": sha256,
    }
    (folder / "model.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for frame caches."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(revedge_command: Command, cache: Path) -> Command:
    """Return the command with a cache of its own."""
    return lambda *words, **more: revedge_command(
        *words, REVEDGE_CACHE=str(cache), OMP_NUM_THREADS="1", **more
    )


def _error(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("revedge: error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_export_then_run(
    command: Command,
    run_python: Command,
    run_folder: Path,
    data_dir: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    """Both formats, all keys; the exported file's accuracy in `run` is that of the comparison."""
    done = command(
        "export",
        str(run_folder),
        "--format",
        "torchscript,onnx",
        "-o",
        "out",
        "--opset",
        "17",
        "--data-dir",
        str(data_dir),
        "--cost",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    inspected = command("inspect", "out/model.onnx", "--json")
    shown = json.loads(inspected.stdout.splitlines()[-1])
    assert shown["cost"] == answer["cost"]
    assert shown["cost"]["network"] == shown["metadata"]["network"]
    assert [Path(file).name for file in answer["files"]] == [
        "model.step.pt",
        "model.stream.pt",
        "model.onnx",
    ]
    assert all((tmp_path / file).is_file() for file in answer["files"])
    assert answer["argmax_changed"] == 0
    assert answer["spike_flips"] <= 50e-6 * answer["compared_spikes"]
    assert answer["max_logit_difference"] < 0.1
    assert set(answer["formats"]) == {"torchscript", "onnx"}
    ran = command("run", "out/model.onnx", "--data", "npz", "--data-dir", str(data_dir), "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["accuracy"] == answer["formats"]["onnx"]["accuracy"]
    assert result["step_ms"] > 0
    assert 10e6 < result["measured_peak_bytes"] < 200e6
    _run_without_torch(run_python, data_dir, tmp_path, cache, result["accuracy"])
    damaged = tmp_path / "out" / "model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    text = _error(command("run", "out/model.onnx", "--data", "npz", "--data-dir", str(data_dir)), 1)
    assert "model.onnx is damaged" in text


def test_files_of_fixed_batch_and_steps_run_on_what_they_were_compared_on(
    command: Command, run_folder: Path, data_dir: Path, tmp_path: Path
) -> None:
    """The batch is the file's, the last one is filled up, recordings are as long as it says; accuracies agree."""
    data = ("--data-dir", str(data_dir))
    words = ("--format", "onnx,onnx-unrolled", "--batch", "4", "--steps", "6", "-o", "fixed")
    done = command("export", str(run_folder), *words, *data, "--json")
    assert done.returncode == 0, done.stderr
    formats = json.loads(done.stdout.splitlines()[-1])["formats"]
    assert formats["onnx"]["test_samples"] % 4
    for name, file in (("onnx", "model.onnx"), ("onnx-unrolled", "model.unrolled.onnx")):
        ran = command("run", f"fixed/{file}", "--data", "npz", *data, "--json")
        assert ran.returncode == 0, ran.stderr
        found = json.loads(ran.stdout.splitlines()[-1])
        assert (found["accuracy"], found["batch"]) == (formats[name]["accuracy"], 4)
        assert found["test_samples"] == formats[name]["test_samples"]
    ran = command("run", "fixed/model.onnx", "--data", "npz", *data, "--batch", "1")
    assert "was exported for 4; leave it out" in _error(ran, 2)
    t = np.arange(64)
    np.savez(tmp_path / "one.npz", t=t, x=t % 12, y=t % 7, p=t % 2)
    ran = command("run", "fixed/model.onnx", "--input", "one.npz", "--json")
    assert ran.returncode == 0, ran.stderr
    (window,) = json.loads(ran.stdout.splitlines()[-1])["windows"]
    assert len(window["logits"]) == 3


def _run_without_torch(
    run_python: Command, data_dir: Path, folder: Path, cache: Path, accuracy: float
) -> None:
    """The command in a process where importing torch, tonic or onnx fails."""
    script = folder / "blocked.py"
    script.write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'tonic', 'onnx', 'sklearn', 'safetensors'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from revedge.cli.main import main\n"
        f"words = ['run', 'out/model.onnx', '--data', 'npz', '--data-dir', {str(data_dir)!r}]\n"
        "sys.exit(main([*words, '--batch', '3', '--json']))\n"
    )
    done = run_python(str(script), REVEDGE_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["accuracy"] == pytest.approx(accuracy)


def test_one_format_that_fails_leaves_the_table_of_the_others(
    command: Command, run_folder: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Weights that are on no grid: TorchScript is done, told and costed all the same; the error names the file."""
    words = ("--format", "onnx,torchscript", "--weights", "int8", "--cost", "--json")
    done = command("export", str(run_folder), *words, "-o", "out", "--data-dir", str(data_dir))
    assert "--numerics exact" in _error(done, 1)
    *text, told, error = done.stdout.splitlines()
    assert any(line.startswith("torchscript  model.step.pt") for line in text)
    assert "error" in json.loads(error)
    answer = json.loads(told)
    assert list(answer["formats"]) == ["torchscript"]
    assert "cost" in answer
    assert len(answer["errors"]) == 1
    assert (tmp_path / "out" / "model.cost.json").is_file()


def test_combinations_are_refused_before_anything_is_done(
    command: Command, run_folder: Path, tmp_path: Path
) -> None:
    """No finish is trained for a format that cannot hold it, or for a target that cannot run it."""
    for words, said in (
        (("--format", "nir,onnx", "--numerics", "exact"), "--format nir has no rounding"),
        (
            ("--format", "onnx", "--target", "generic", "--weights", "int8"),
            "int8 is not for generic .*use --target ort or jetpack5 or jetpack6",
        ),
        (("--finish-epochs", "2"), "--finish-epochs 2 goes with --numerics exact"),
    ):
        error = _error(command("export", str(run_folder), *words, "-o", "out"), 2)
        assert re.search(said, error), error
    assert not (tmp_path / "out").exists()
    assert not (run_folder / "exact").exists()


def test_what_is_not_there(command: Command, run_folder: Path, tmp_path: Path) -> None:
    """A missing run, an unfinished run, a missing model, a mistyped format or data set: exit code 2."""
    assert "does not exist" in _error(command("export", "nowhere", "-o", "out"), 2)
    (tmp_path / "begun").mkdir()
    assert "revedge train --resume begun" in _error(command("export", "begun", "-o", "out"), 2)
    assert "did you mean onnx" in _error(
        command("export", str(run_folder), "--format", "onix", "-o", "out"), 2
    )
    assert "does not exist" in _error(command("run", "no.onnx", "--data", "digits"), 2)
    assert not (tmp_path / "out").exists()


def test_run_of_another_version_is_an_error(
    command: Command, run_folder: Path, tmp_path: Path
) -> None:
    """The version is named: exit code 1."""
    description = json.loads((run_folder / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**description, "version": 9}))
    (tmp_path / "model.safetensors").write_bytes((run_folder / "model.safetensors").read_bytes())
    assert "model version 9" in _error(command("export", str(tmp_path), "-o", "out"), 1)


def test_damaged_run_is_an_error(command: Command, run_folder: Path, tmp_path: Path) -> None:
    """A cut weight file or description: exit code 1, and what to do."""
    for name, words in (("model.safetensors", "truncated"), ("model.json", "damaged")):
        folder = tmp_path / f"cut {name}"
        folder.mkdir()
        for file in ("model.safetensors", "model.json"):
            content = (run_folder / file).read_bytes()
            (folder / file).write_bytes(content[: len(content) // 2] if file == name else content)
        assert words in _error(command("export", str(folder), "-o", "out"), 1)
