"""The Triton kernels equal the PyTorch reference, in Triton's interpreter and, if there is one, on a GPU."""

import importlib.util
import json
import pathlib
import subprocess
from collections.abc import Callable

import pytest
import torch
from triton_checks import CHECKS

from revedge.kernels import triton_status

FOLDER = str(pathlib.Path(__file__).parent)
CHILD = f"import sys; sys.path.append({FOLDER!r}); import triton_child; triton_child.main()"
DEADLINE_S = 300.0
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
Results = Callable[[str], dict[str, str]]
KERNELS = [
    "bits._merge",
    "bits._pack",
    "bits._unpack",
    "grid._grid_add",
    "neuron._backward",
    "neuron._forward",
    "norm._apply",
    "norm._finish",
    "norm._scale",
    "norm._sum_piece",
    "reversible._backward",
    "reversible._forward",
]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.fixture(scope="session")
def kept() -> dict[str, dict[str, str]]:
    """Return where the results of each way are kept, so that it runs once."""
    return {}


@pytest.fixture
def results(run_python: RunPython, kept: dict[str, dict[str, str]]) -> Results:
    """Return a function that runs triton_child.py: TRITON_INTERPRET counts at Triton's import only."""

    def of(way: str) -> dict[str, str]:
        if way not in kept:
            environment = {
                "TRITON_INTERPRET": "1" if way == "interpreter" else "0",
                "TRITON_CACHE_DIR": "cache",
            }
            done = run_python("-c", CHILD, way, timeout_s=DEADLINE_S, **environment)
            died = {"died": done.stderr}
            kept[way] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else died
        return kept[way]

    return of


def assert_passed(found: dict[str, str], name: str) -> None:
    if "skip" in found:
        pytest.skip(found["skip"])
    assert "died" not in found, found["died"]
    assert found[name] == ""


@needs_triton
@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(results: Results, name: str) -> None:
    """Bit for bit, on the CPU, by the kernels' own code."""
    assert_passed(results("interpreter"), name)


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_cuda(results: Results, name: str) -> None:
    """Bit for bit, on the GPU, through the dispatcher."""
    assert_passed(results("cuda"), name)


@needs_triton
@pytest.mark.parametrize("name", [*KERNELS, "control"])
def test_machine_code_rounds_as_the_reference(results: Results, name: str) -> None:
    """Compiled for a GPU, no multiply and add is fused, and no division approximate."""
    assert_passed(results("compile"), name)


@needs_triton
def test_every_kernel_is_compiled(results: Results) -> None:
    """No kernel is left out of the test above."""
    assert sorted(results("compile")) == sorted([*KERNELS, "control"])


def test_status_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton is not used there is a reason; REVEDGE_NO_TRITON=1 is one."""
    status = triton_status()
    assert status["loaded"] or status["reason"]
    if not torch.cuda.is_available():
        assert not status["loaded"]
    from revedge.kernels import _triton

    _triton._load.cache_clear()
    monkeypatch.setenv("REVEDGE_NO_TRITON", "1")
    try:
        assert triton_status() == {"loaded": False, "reason": "switched off by REVEDGE_NO_TRITON=1"}
    finally:
        _triton._load.cache_clear()
