"""The set-up of `make test`: libraries to compare with come where they can be had, and are never a reason to fail."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
STAMP = Path(".venv/stamps/peers")


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """Return a folder with the Makefile, and a .venv that counts as made up to torch."""
    shutil.copy(root / "Makefile", tmp_path)
    for folder in ("revedge", "export", "devices", ".venv/bin", ".venv/stamps"):
        (tmp_path / folder).mkdir(parents=True)
    for stamp in ("venv", "torch"):
        (tmp_path / ".venv/stamps" / stamp).touch()
    return tmp_path


def set_up(checkout: Path, missing: str) -> tuple[str, list[str]]:
    """Make the stamp with an interpreter whose pip lacks ``missing``; return stdout and what pip was asked for."""
    python, asked = checkout / ".venv/bin/python", checkout / "asked"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\n'
        f'case "$*" in *{missing}*) echo "no such package" >&2; exit 1;; esac\n'
    )
    python.chmod(0o755)
    asked.write_text("")
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    done = subprocess.run(
        ["make", str(STAMP)], cwd=checkout, env=env, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, asked.read_text().splitlines()


@pytest.mark.parametrize(
    ("missing", "other"),
    [("spikingjelly", "snntorch"), ("snntorch", "loguru"), ("aedat", "loguru")],
)
def test_what_cannot_be_had_is_told_and_the_rest_installed(
    checkout: Path, missing: str, other: str
) -> None:
    """One line names it; the other one is installed; the next run tries again, and then it is done."""
    said, asked = set_up(checkout, missing)
    assert said.startswith(f"setup: {missing}==")
    assert said.count("\n") == 1
    assert "skipped" in said
    assert any(other in line for line in asked)
    assert "no such package" in (checkout / ".venv/peers.log").read_text()
    assert not (checkout / STAMP).exists()
    assert set_up(checkout, "nothing") == ("", asked)
    assert (checkout / STAMP).exists()
    assert set_up(checkout, "nothing")[1] == []


def test_nothing_else_comes_along(checkout: Path) -> None:
    """pip is told to leave out what they ask for: torch stays as it is, and torchvision does not come."""
    _, asked = set_up(checkout, "nothing")
    assert len(asked) == 3
    assert all("--no-deps" in line for line in asked)
