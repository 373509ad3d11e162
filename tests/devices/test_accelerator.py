"""CUDA that is not there is refused in one line, by every command that was asked for it, before anything runs."""

from pathlib import Path

import pytest

from revedge.cli.main import main
from revedge.devices import accelerator, probe
from revedge.errors import DeviceError

SHAPE = ("--in-shape", "2,16,16", "--classes", "10", "--model", "revsresnet11", "--budget", "1GiB")


def test_a_torch_for_the_cpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked; the error names three things to do."""
    monkeypatch.setattr(accelerator, "package_version", lambda name: "2.13.0+cpu")
    monkeypatch.setattr(accelerator, "ask_torch", lambda: pytest.fail("asked"))
    with pytest.raises(DeviceError) as caught:
        accelerator.require_cuda("--device cuda")
    assert str(caught.value).startswith("--device cuda: torch 2.13.0+cpu is built for the CPU; ")
    assert "on the CPU, install a torch with CUDA, or plan for another board" in str(caught.value)


def test_others_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other torch says what it sees."""
    gpu = probe.Gpu(
        name="Orin", memory_bytes=1, sm_count=8, compute_capability="8.7", unified_memory=True
    )
    monkeypatch.setattr(accelerator, "package_version", lambda name: "2.13.0")
    monkeypatch.setattr(accelerator, "ask_torch", lambda: ((gpu,), ""))
    accelerator.require_cuda("--device cuda")
    monkeypatch.setattr(accelerator, "ask_torch", lambda: ((), "torch sees no CUDA device"))
    with pytest.raises(DeviceError, match="torch sees no CUDA device; plan and train on the CPU"):
        accelerator.require_cuda("--device cuda")


@pytest.mark.parametrize("command", ["plan", "train"])
def test_commands_ask_first(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Neither plan nor train starts a measuring process, and a run folder is not left behind."""
    monkeypatch.setattr(accelerator, "package_version", lambda name: "2.13.0+cpu")
    out = str(tmp_path / "run")
    words = {
        "plan": ("plan", *SHAPE, "--accelerator", "cuda"),
        "train": (
            "train",
            "--data",
            "digits",
            "--budget",
            "1GiB",
            "--device",
            "cuda",
            "--out",
            out,
        ),
    }[command]
    assert main(list(words)) == 1
    said = capsys.readouterr().err
    assert "cuda: torch 2.13.0+cpu is built for the CPU; " in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()
