"""`revedge doctor`: what works, what is missing, and the exit code."""

import json
from pathlib import Path

import pytest

from revedge.cli import doctor
from revedge.cli.main import main

ANSWERS = {"loaded": "True", "openmp": "True", "float32 error": 2e-7}


def _checks(text: str) -> dict[str, dict[str, object]]:
    return {check["name"]: check for check in json.loads(text.splitlines()[-1])["checks"]}


def test_training_works_where_the_tests_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Every line says ok, or what is missing and what to do; the exit code is 0 here."""
    assert main(["doctor", "--json"]) == 0
    text = capsys.readouterr().out
    checks = _checks(text)

    assert json.loads(text.splitlines()[-1])["can_train"] is True
    assert {"python", "torch", "C kernels", "memory fence", "allocator", "cache"} <= set(checks)
    assert all(check["ok"] or check["advice"] for check in checks.values())
    assert checks["memory fence"]["ok"] is True
    assert checks["allocator"]["ok"] is True


def test_kernels_line_follows_the_switch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the C library doctor says why, and that training still works."""
    monkeypatch.setenv("REVEDGE_NO_NATIVE", "1")

    assert main(["doctor", "--json"]) == 0
    kernels = _checks(capsys.readouterr().out)["C kernels"]
    assert kernels["ok"] is False
    assert "REVEDGE_NO_NATIVE" in str(kernels["found"])


def test_cuda_kernels_have_a_line_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU doctor says whether Triton runs, and why not; without one it says nothing of it."""
    answers = ANSWERS | {"triton": "Triton is not installed"}
    monkeypatch.setattr(doctor, "_child", lambda code: json.dumps(answers))
    cuda = doctor._what_torch_does()[-1]
    assert (cuda.name, cuda.ok) == ("CUDA kernels", False)
    assert "reference in use: Triton is not installed" in cuda.found
    answers["triton"] = "loaded"
    assert doctor._what_torch_does()[-1].ok
    del answers["triton"]
    assert [check.name for check in doctor._what_torch_does()] == ["C kernels", "float32"]


def test_a_torch_that_computes_float32_in_bfloat16_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Arm CPUs with bfloat16 torch 2.4 does: linear layers are off by 2e-4, not by 2e-7."""
    for error, ok in ((2.2e-7, True), (1.8e-4, False)):
        answer = json.dumps(ANSWERS | {"float32 error": error})
        monkeypatch.setattr(doctor, "_child", lambda code, answer=answer: answer)
        check = doctor._what_torch_does()[1]
        assert (check.name, check.ok) == ("float32", ok)
    assert check.found == "linear layers are off by 2e-04: this torch uses bfloat16"
    assert "torch 2.5" in check.advice


def test_no_torch_is_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing required package makes the exit code 1 and is named with its cure."""
    from revedge.devices import probe

    real = probe.package_version
    monkeypatch.setattr(
        probe, "package_version", lambda name: None if name == "torch" else real(name)
    )
    monkeypatch.setattr(doctor, "_child", lambda code: "true")

    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert (
        "missing  torch            not installed; on a Jetson install the torch built for it"
        in text
    )
    assert "training cannot work here" in text


def test_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch before 2.4 does not pass; a board's local version does."""
    from revedge.devices import probe

    for version, ok in [("2.3.1", False), ("1.10.0", False), ("2.5.0a0+872d972e41.nv24.8", True)]:
        monkeypatch.setattr(probe, "package_version", lambda name, version=version: version)
        assert doctor._torch().ok is ok


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file where the cache folder should be is noticed without writing anything."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("REVEDGE_CACHE", str(tmp_path / "file" / "cache"))

    check = doctor._cache()
    assert check.ok is False
    assert "REVEDGE_CACHE" in check.advice
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
