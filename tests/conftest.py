"""What every test may use, and where the suite runs.

The suite runs against what ``import revedge`` finds: the checkout when pytest starts in its root, the
built wheel under ``make test`` (REVEDGE_TEST_INSTALLED=1).
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported, here and in child processes. The nets of these tests are small: a second thread only waits
# for the first, and beside other jobs for its turn on a core as well. Tests about threads ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]
RunPython = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the checkout when the wheel was meant."""
    import revedge

    found = Path(revedge.__file__).resolve()
    if os.environ.get("REVEDGE_TEST_INSTALLED") == "1" and found.is_relative_to(ROOT / "revedge"):
        raise pytest.UsageError(f"revedge is {found}, but the installed one was to be tested")


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the checkout, for tests of its files."""
    return ROOT


@pytest.fixture(scope="session")
def package() -> Path:
    """Return the folder of the ``revedge`` under test: in the checkout, or in site-packages."""
    import revedge

    return Path(revedge.__file__).parent


@pytest.fixture(scope="session")
def child_env(package: Path) -> dict[str, str]:
    """Return an environment in which a child process imports the ``revedge`` under test."""
    env = {**os.environ, "PYTHONPATH": str(package.parent)}
    env.pop("PYTHONWARNINGS", None)
    return env


@pytest.fixture
def run_python(tmp_path: Path, child_env: dict[str, str]) -> RunPython:
    """Return a function that runs a fresh Python in an empty folder and gives back what it printed."""

    def run(*words: str, timeout_s: float = 120.0, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**child_env, **env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run


@pytest.fixture
def revedge_command(run_python: RunPython) -> RunPython:
    """Return a function that runs the command ``revedge`` with words, as a user would."""

    def run(*words: str, timeout_s: float = 300.0, **env: str) -> subprocess.CompletedProcess[str]:
        return run_python("-m", "revedge.cli.main", *words, timeout_s=timeout_s, **env)

    return run


_RESIDUAL_BLOCK = """
import torch
from torch import nn
from revedge.neurons import LIFNode

class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.lif, self.conv, self.bn = LIFNode(), nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
    def forward(self, x):
        return x + self.bn(self.conv(self.lif(x).flatten(0, 1))).unflatten(0, x.shape[:2])
"""


@pytest.fixture(scope="session")
def residual_block() -> str:
    """Return the beginning of a file with a user's models: what they import, and a block, ``[T, B, C, H, W]``."""
    return _RESIDUAL_BLOCK


_LIMITED = """
import mmap, resource
resource.setrlimit(resource.RLIMIT_DATA, (1, 1))
try:
    mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except OSError:
    print("holds")
"""


@pytest.fixture(scope="session")
def memory_limit() -> None:
    """Skip where RLIMIT_DATA holds nobody back: emulators take it and forget it."""
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True)
    if done.stdout.strip() != "holds":
        pytest.skip("RLIMIT_DATA does not hold here, as `revedge doctor` says")
