"""What the kernel tests share."""

import pathlib
import sys
from collections.abc import Iterator

import pytest
import torch

from revedge.kernels import native_status
from revedge.kernels._native import LIBRARY

# Tests are loaded by file, so what they share is found by adding their folder.
sys.path.append(str(pathlib.Path(__file__).parent))


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill what torch.empty returns with NaN, so that reading it before writing shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run with one and with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def native() -> None:
    """Skip where the C library was not built: there is nothing to compare then."""
    status = native_status()
    if not status["loaded"]:
        pytest.skip(f"C kernels: {status['reason']}")


@pytest.fixture(params=[512, 256, 0])
def vector_bits(request: pytest.FixtureRequest) -> Iterator[int]:
    """Let kernels that choose their vectors by hand use at most so many bits."""
    if LIBRARY is None:
        pytest.skip(str(native_status()["reason"]))
    LIBRARY.revedge_limit_vectors(request.param)
    yield request.param
    LIBRARY.revedge_limit_vectors(512)
