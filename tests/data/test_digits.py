"""The embedded data set."""

import subprocess
from collections.abc import Callable

import numpy as np

from revedge.data import DatasetInfo, FrameCache, describe, prepare

RunPython = Callable[..., subprocess.CompletedProcess[str]]
# All frames at T = 8, training part first. A change of it makes every accuracy quoted before incomparable.
FRAMES_SHA256 = "2c5a7cd3393240387046b28362b82e9c27131af7ebccc938aca6d8cb97daf660"


def test_frames_are_pinned(digits_cache: FrameCache) -> None:
    """The digits are the same bytes on every machine."""
    assert digits_cache.meta["frames_sha256"] == FRAMES_SHA256
    digits_cache.check_frames()


def test_split_has_exact_numbers(digits_cache: FrameCache) -> None:
    """1,438 training and 359 test recordings; 20 % of every class."""
    cache = digits_cache
    assert (len(cache.train_indices), len(cache.test_indices)) == (1438, 359)
    train = np.bincount(cache.labels[cache.train_indices]).tolist()
    test = np.bincount(cache.labels[cache.test_indices]).tolist()
    assert train == [142, 146, 142, 146, 145, 146, 145, 143, 139, 144]
    assert test == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


def test_describes_itself(digits_cache: FrameCache) -> None:
    """Description and cache agree on shapes; event counts enter the network as they are."""
    assert describe("digits") == DatasetInfo("digits", (2, 16, 16), 10, static=False)
    assert digits_cache.in_shape == (2, 16, 16)
    assert digits_cache.timesteps == 8
    assert not digits_cache.static
    assert digits_cache.frames.shape == (1797, 8, 2, 16, 16)
    assert digits_cache.scale == 1.0
    assert digits_cache.class_names == tuple("0123456789")


def test_frames_tell_the_digits_apart(digits_cache: FrameCache) -> None:
    """Labels belong to their frames: the nearest class mean alone is right 85 times in 100."""
    cache = digits_cache
    frames = cache.frames.reshape(len(cache), -1).astype(np.float32)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    train, test = cache.train_indices, cache.test_indices
    means = np.stack([frames[train][cache.labels[train] == k].mean(0) for k in range(10)])
    guess = (frames[test] @ means.T / np.linalg.norm(means, axis=1)).argmax(1)
    assert np.mean(guess == cache.labels[test]) > 0.85


def test_training_process_imports_no_reader(
    run_python: RunPython, digits_cache: FrameCache
) -> None:
    """Preparing, describing and reading import neither tonic, scikit-learn, Pillow nor torch."""
    code = f"""
import sys, revedge.data as data
path = data.prepare("digits", None, 8, {str(digits_cache.path.parent)!r})
cache = data.FrameCache.open(path)
cache.batch([0, 1]); cache.frames[0].sum(); cache.drop_pages(); data.describe("digits")
heavy = {{"tonic", "sklearn", "scipy", "PIL", "torch", "numba", "librosa", "pandas"}}
print(heavy & {{name.split(".")[0] for name in sys.modules}}, path == cache.path)
"""
    result = run_python("-c", code)
    assert (result.stdout, result.stderr) == ("set() True\n", "")


def test_built_by_another_process_and_once(digits_cache: FrameCache) -> None:
    """A cache that is there and whole is used as it is."""
    before = digits_cache.path.stat().st_mtime_ns
    assert prepare("digits", None, 8, digits_cache.path.parent) == digits_cache.path
    assert digits_cache.path.stat().st_mtime_ns == before
    assert {"tonic", "scikit-learn", "numpy"} <= set(digits_cache.meta["made_with"])
