"""The frame cache: what is read is what was written, and damage is noticed."""

import json
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from revedge.data import FrameCache
from revedge.data.writer import Samples, write_cache
from revedge.errors import DataError

RunPython = Callable[..., subprocess.CompletedProcess[str]]
UInt8 = npt.NDArray[np.uint8]


def _write(folder: Path, frames: UInt8, timesteps: int | None) -> FrameCache:
    samples = Samples(
        in_shape=frames.shape[-3:],
        timesteps=timesteps,
        class_names=("a", "b", "c"),
        labels=np.arange(len(frames)) % 3,
        num_train=len(frames) - 2,
        scale=1.0,
        frames=iter(frames),
    )
    write_cache(samples, folder, "toy", {"k": 1}, {})
    return FrameCache.open(folder)


def _random(*shape: int) -> UInt8:
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)


@pytest.fixture
def frames() -> UInt8:
    """Return 7 event samples [N, T, C, H, W] of odd sizes."""
    return _random(7, 5, 2, 3, 9)


@pytest.fixture
def cache(tmp_path: Path, frames: UInt8) -> FrameCache:
    """Return a cache of ``frames``."""
    return _write(tmp_path / "toy", frames, 5)


def test_a_large_data_set_takes_a_byte_a_sample(tmp_path: Path) -> None:
    """Of 50,000 samples: what is kept beside training does not grow by whole integers for each."""
    frames = np.zeros((50_000, 1, 1, 1), dtype=np.uint8)
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        cache = _write(tmp_path / "large", frames, None)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes - before_bytes < 50_000 + 32_768
    assert (len(cache), cache.labels[4], cache.train_indices[-1]) == (50_000, 1, 49_997)


def test_event_batches_have_time_first(cache: FrameCache, frames: UInt8) -> None:
    """A batch is [T, B, C, H, W], contiguous, in the order asked for, doubles included."""
    chosen = [6, 0, 3, 3]
    batch, labels = cache.batch(chosen)
    assert np.array_equal(batch, frames[chosen].swapaxes(0, 1))
    assert batch.flags.c_contiguous
    assert batch.dtype == np.uint8
    assert labels.tolist() == [0, 0, 0, 0]
    assert labels.dtype == np.int64
    assert np.array_equal(cache.frames, frames)


def test_static_batches_have_no_time(tmp_path: Path) -> None:
    """Images are [B, C, H, W] and are never repeated."""
    images = _random(5, 3, 4, 6)
    cache = _write(tmp_path / "toy", images, None)
    assert cache.static
    assert cache.timesteps is None
    batch, labels = cache.batch(np.array([4, 1]))
    assert np.array_equal(batch, images[[4, 1]])
    assert labels.tolist() == [1, 1]


def test_batches_are_fresh_and_frames_are_read_only(cache: FrameCache, frames: UInt8) -> None:
    """Writing into a batch changes nothing; the mapped frames cannot be written."""
    cache.batch([0])[0][:] = 0
    assert np.array_equal(cache.batch([0])[0][:, 0], frames[0])
    with pytest.raises(ValueError, match="read-only"):
        cache.frames[0] = 0
    assert cache.batch([])[0].shape == (5, 0, 2, 3, 9)


def test_train_and_test_parts(cache: FrameCache) -> None:
    """The parts are disjoint and together the whole."""
    assert cache.train_indices.tolist() == [0, 1, 2, 3, 4]
    assert cache.test_indices.tolist() == [5, 6]
    assert len(cache) == 7
    assert cache.sample_bytes == 5 * 2 * 3 * 9
    assert cache.num_classes == 3


@pytest.mark.parametrize("index", [-1, 7])
def test_index_outside(cache: FrameCache, index: int) -> None:
    """There is no wrapping around."""
    with pytest.raises(IndexError, match="0 to 6"):
        cache.batch([0, index])


def test_dropped_pages_stay_readable(cache: FrameCache, frames: UInt8) -> None:
    """drop_pages gives back memory, not data."""
    cache.drop_pages()
    view = cache.frames
    cache.drop_pages()
    assert np.array_equal(view, frames)


@pytest.mark.parametrize("file", ["frames.u8", "labels.i64", "meta.json"])
def test_truncated_or_missing_file(cache: FrameCache, file: str) -> None:
    """Each file cut short, then removed, is an error that names the cache."""
    path = cache.path / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"frame cache .*toy: "):
        FrameCache.open(cache.path)
    path.unlink()
    with pytest.raises(DataError, match=f"{file}: no such file"):
        FrameCache.open(cache.path)


def test_flipped_bits(cache: FrameCache) -> None:
    """A flipped bit in the labels is noticed at once, one in the frames by check_frames."""
    cache.check_frames()
    frames, labels = cache.path / "frames.u8", cache.path / "labels.i64"
    content = bytearray(frames.read_bytes())
    content[100] ^= 1
    frames.write_bytes(content)
    with pytest.raises(DataError, match=r"frames\.u8 does not have the SHA-256"):
        FrameCache.open(cache.path).check_frames()
    labels.write_bytes(b"\1" + labels.read_bytes()[1:])
    with pytest.raises(DataError, match=r"labels\.i64 does not have the SHA-256"):
        FrameCache.open(cache.path)


HOSTILE: list[tuple[str, Any]] = [
    ("in_shape", [2, 3]),
    ("in_shape", [2, -3, 9]),
    ("in_shape", 7),
    ("timesteps", "5"),
    ("timesteps", 0),
    ("timesteps", 10**30),
    ("num_classes", True),
    ("num_classes", 2),
    ("num_train", 0),
    ("num_test", 1e9),
    ("class_names", ["a", "b", 3]),
    ("scale", "1"),
    ("scale", float("nan")),
    ("dataset", None),
    ("format_version", "1"),
]


@pytest.mark.parametrize(("field", "value"), HOSTILE)
def test_hostile_meta(cache: FrameCache, field: str, value: object) -> None:
    """A field of the wrong type or range is a DataError, and so is a field that is missing."""
    path = cache.path / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {field: value}))
    with pytest.raises(DataError):
        FrameCache.open(cache.path)
    del meta[field]
    path.write_text(json.dumps(meta))
    with pytest.raises(DataError, match=f"lacks the field '{field}'"):
        FrameCache.open(cache.path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', "\xff", "[" * 10_000])
def test_meta_that_is_not_meta(cache: FrameCache, text: str) -> None:
    """Whatever stands in meta.json, the answer is one DataError."""
    (cache.path / "meta.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError):
        FrameCache.open(cache.path)


def test_other_format_version(cache: FrameCache) -> None:
    """A cache of another version says so, whatever else it holds."""
    (cache.path / "meta.json").write_text('{"format_version": 2}')
    with pytest.raises(DataError, match="is of format 2, this revedge reads 1"):
        FrameCache.open(cache.path)


def test_shortened_while_open(cache: FrameCache) -> None:
    """A file that is cut off under a running training is an error, not a crash."""
    with (cache.path / "frames.u8").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(DataError, match="shortened while it was in use"):
        cache.batch([6])


def test_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    """Frames of another shape or number than announced are not written silently."""
    right = _random(4, 1, 2, 2)
    for wrong in (right[:3], right[:, :, :1], right.astype(np.int16)):
        samples = Samples((1, 2, 2), None, ("a",), np.zeros(4, np.int64), 3, 1.0, iter(wrong))
        with pytest.raises(DataError, match="toy: "):
            write_cache(samples, tmp_path / str(id(wrong)), "toy", {}, {})


MEMORY_CODE = """
import mmap, sys, numpy as np
from revedge.data import FrameCache
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE
cache = FrameCache.open(sys.argv[1])
batches = np.random.RandomState(0).permutation(len(cache)).reshape(-1, 32)
out = cache.batch(batches[0])  # everything is imported and touched once
del out
before, most = rss(), 0
for chosen in batches:
    out = cache.batch(chosen)
    most = max(most, rss() - before)
    del out
print(most, cache.resident_bound_bytes(32))
before = rss()
cache.frames.sum()
touched = rss() - before
cache.drop_pages()
print(touched, rss() - before, cache.frames.nbytes)
"""


def test_batches_do_not_grow_the_process(tmp_path: Path, run_python: RunPython) -> None:
    """Reading 32 MiB in batches stays under the stated bound; mapped pages are given back."""
    _write(tmp_path / "toy", _random(512, 4, 1, 128, 128), 4)
    result = run_python("-c", MEMORY_CODE, str(tmp_path / "toy"))
    assert result.returncode == 0, result.stderr
    most, bound, touched, left, size = map(int, result.stdout.split())
    slack = 256 * 1024  # the interpreter's own small objects
    assert most <= bound + slack
    assert bound < 3 * 2**20 < size
    assert touched > size // 2
    assert left <= slack
