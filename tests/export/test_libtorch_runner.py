"""The C++ runner in examples/libtorch_runner: built with what torch's wheel holds, and run on an exact stream."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo import KINDS, FakeFrames, events

from revedge.export.torchscript import read_torchscript
from revedge.export.writer import export_network

_SOURCE = Path(__file__).resolve().parents[2] / "examples" / "libtorch_runner"
_TORCH = Path(torch.__file__).parent


def _missing() -> str:
    if shutil.which("cmake") is None:
        return "cmake is not installed"
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "no C++ compiler is installed"
    if not (_TORCH / "include" / "torch" / "script.h").is_file():
        return "this torch comes without libtorch's headers"
    if not (_TORCH / "share" / "cmake" / "Torch").is_dir():
        return "this torch comes without libtorch's CMake files"
    return "" if torch.version.cuda is None else "this torch needs the CUDA toolkit to link against"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built program."""
    if reason := _missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("build")
    prefix = f"-DCMAKE_PREFIX_PATH={_TORCH / 'share' / 'cmake'}"
    for words in (["-S", str(_SOURCE), "-B", str(folder), prefix], ["--build", str(folder)]):
        done = subprocess.run(["cmake", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "libtorch_runner"


def _run(runner: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [str(runner), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_cpp_gives_the_bits_of_the_file(runner: Path, tmp_path: Path) -> None:
    """Logits of every step, as hexadecimal floats, are those of Python; so is the class."""
    net = KINDS["coupling"]()
    export_network(net, FakeFrames(net), tmp_path, ["torchscript"], numerics="exact")
    x = events(6, 1, 3)
    x.tofile(tmp_path / "frames.bin")
    done = _run(runner, str(tmp_path / "model.stream.pt"), str(tmp_path / "frames.bin"))
    assert done.returncode == 0, done.stderr
    *steps, last = done.stdout.splitlines()
    found = [[float.fromhex(word) for word in line.split()[2:]] for line in steps]
    stream: Any = read_torchscript(tmp_path / "model.stream.pt")[0]
    stream.reset(1)
    with torch.no_grad():
        expected = np.stack([stream(torch.from_numpy(frame)).numpy()[0] for frame in x])
    assert np.abs(expected).max() > 0
    assert np.array_equal(np.array(found, np.float32), expected)
    assert last == f"class {expected.sum(0).argmax()}"


def test_cpp_says_what_is_wrong(runner: Path, tmp_path: Path) -> None:
    """No file, a file that is none, frames of another size, a file without states: one line each."""
    net = KINDS["if hard"]()
    export_network(net, FakeFrames(net), tmp_path, ["torchscript"], numerics="exact")
    stream, step = str(tmp_path / "model.stream.pt"), str(tmp_path / "model.step.pt")
    (tmp_path / "frames.bin").write_bytes(bytes(4 * 130))
    frames = str(tmp_path / "frames.bin")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "model.stream.pt").read_bytes()[:999])
    for words, text in (
        ([stream], "usage: "),
        ([stream, str(tmp_path / "none.bin")], "cannot be read"),
        ([str(tmp_path / "cut.pt"), frames], "is damaged"),
        ([step, frames], "use model.stream.pt"),
        ([stream, frames], "130 values, no multiple of 128"),
    ):
        done = _run(runner, *words)
        assert done.returncode == 1
        assert done.stderr.startswith("libtorch_runner: error: ")
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
