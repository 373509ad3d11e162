"""A board that runs exported files has no torch: what is installed there, and what every command and import says."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Board = Callable[..., subprocess.CompletedProcess[str]]
# Found by every child, too: an interpreter imports sitecustomize before anything else.
_NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def board(tmp_path: Path, child_env: dict[str, str]) -> Board:
    """Return Python as where torch is not installed, in all its child processes, too."""
    (tmp_path / "sitecustomize.py").write_text(_NO_TORCH)
    env = {**child_env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{child_env['PYTHONPATH']}"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def _requirements(root: Path) -> list[tuple[str, set[str]]]:
    """(package, extras that bring it; none of them: always), of the wheel if that is under test, else as declared."""
    if os.environ.get("REVEDGE_TEST_INSTALLED") == "1":
        found = []
        for line in metadata.requires("revedge") or []:
            name, _, marker = line.partition(";")
            found.append((name, set(re.findall(r"extra == ['\"](\w+)['\"]", marker))))
    else:
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
        found = [(line.partition(";")[0], set[str]()) for line in project["dependencies"]]
        for extra, lines in project["optional-dependencies"].items():
            found += [(line.partition(";")[0], {extra}) for line in lines]
    return [(name.strip().lower(), extras) for name, extras in found]


def _brought_by(root: Path, extra: str) -> set[str]:
    """Names of the packages that ``pip install revedge[extra]`` asks for."""
    packages, waiting, seen = set(), [extra], set()
    for name, extras in _requirements(root):
        if not extras:
            packages.add(re.split(r"[<>=~! \[]", name)[0])
    while waiting:
        one = waiting.pop()
        seen.add(one)
        for name, extras in _requirements(root):
            if one not in extras:
                continue
            inner = re.match(r"revedge\[([\w,]+)\]", name)
            if inner:
                waiting += [part for part in inner[1].split(",") if part not in seen]
            else:
                packages.add(re.split(r"[<>=~! \[]", name)[0])
    return packages - {"tomli"}


def test_the_runtime_brings_no_torch(root: Path) -> None:
    """The runtime is numpy and onnxruntime, training brings torch, and so does everything."""
    assert _brought_by(root, "runtime") == {"numpy", "onnxruntime"}
    assert {"torch", "numpy", "tonic"} <= _brought_by(root, "train")
    assert {"torch", "onnx", "onnxruntime"} <= _brought_by(root, "all")
    assert "torch" not in _brought_by(root, "no extra")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "digits", "--budget", "400MiB", "--out", "run"],
        ["plan", "--data", "digits", "--budget", "400MiB"],
        ["verify", "--model", "revsresnet11"],
        ["export", "run", "-o", "files"],
        ["bench", "--net", "revsresnet11"],
    ],
    ids=lambda words: words[0],
)
def test_commands_say_what_is_missing(words: list[str], board: Board) -> None:
    """One line: that torch is not there, and what to type; exit code 1, no traceback."""
    done = board("-m", "revedge.cli.main", *words)
    lines = done.stderr.splitlines()

    assert (done.returncode, done.stdout, len(lines)) == (1, "", 1), done.stderr
    assert "torch, which is not installed; install " in lines[0]


@pytest.mark.parametrize(
    "code",
    [
        "import revedge; revedge.LIFNode",
        "import revedge; revedge.create('vgg5')",
        "import revedge.kernels",
        "import revedge.engine.unit",
        "from revedge.models import create",
        "from revedge.neurons import LIFNode",
        "from revedge.export import export_network",
    ],
)
def test_imports_say_what_is_missing(code: str, board: Board) -> None:
    """The error of an import is a ModuleNotFoundError of torch, and says what to type."""
    program = (
        "try:\n    exec({!r})\nexcept ModuleNotFoundError as error:\n    print(error.name, error)"
    )
    done = board("-c", program.format(code))

    assert done.stdout.startswith("torch this needs torch, which is not installed; "), done.stderr


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["train", "--help"], ["run", "--help"], ["devices", "list"]],
    ids=" ".join,
)
def test_what_needs_no_torch_works(words: list[str], board: Board) -> None:
    """Help, the version and the boards are there without torch."""
    done = board("-m", "revedge.cli.main", *words)

    assert (done.returncode, done.stderr) == (0, "")
