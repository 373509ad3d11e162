"""Tiny valid copies of data sets, in the true formats."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from revedge.data import FrameCache, prepare

Event = tuple[int, int, int, int]


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    """Return the digits at T = 8, built once."""
    return FrameCache.open(prepare("digits", None, 8, tmp_path_factory.mktemp("caches")))


@pytest.fixture
def atis() -> Callable[[Sequence[Event]], bytes]:
    """Return a function that codes events (x, y, t [us], p) as an ATIS camera does, 5 bytes each."""

    def code(events: Sequence[Event]) -> bytes:
        return b"".join(
            bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for x, y, t, p in events
        )

    return code


@pytest.fixture
def nmnist_folder(atis: Callable[[Sequence[Event]], bytes]) -> Callable[[Path], Path]:
    """Return a function that writes three N-MNIST recordings of 40 events per digit 0, 1 and part."""

    def write(root: Path) -> Path:
        rng = np.random.RandomState(0)
        for part, count in (("Train", 2), ("Test", 1)):
            for digit in range(2):
                folder = root / part / str(digit)
                folder.mkdir(parents=True)
                for number in range(count):
                    times = np.sort(rng.randint(0, 300_000, 40))
                    places = rng.randint(0, 34, (40, 2))
                    signs = rng.randint(0, 2, 40)
                    events = [
                        (int(x), int(y), int(t), int(p))
                        for (x, y), t, p in zip(places, times, signs, strict=True)
                    ]
                    (folder / f"{number:05d}.bin").write_bytes(atis(events))
        return root

    return write
