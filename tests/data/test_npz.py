"""The user's own .npz files, honest and hostile."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from revedge.data import DatasetInfo, FrameCache, describe, prepare
from revedge.errors import DataError, UsageError

RNG = np.random.RandomState(0)


def _x(*shape: int) -> Any:
    return RNG.randint(0, 256, shape).astype(np.uint8)


def test_two_parts_of_events(tmp_path: Path) -> None:
    """[N, T, C, H, W] counts with their own test part go through unchanged, unscaled."""
    train, test = _x(6, 3, 2, 4, 5), _x(4, 3, 2, 4, 5)
    labels = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)
    np.savez(tmp_path / "own.npz", train_x=train, train_y=labels, test_x=test, test_y=labels[:4])
    info = describe("npz", tmp_path)
    assert info == DatasetInfo("npz", (2, 4, 5), 3, static=False, timesteps=3)
    cache = FrameCache.open(prepare("npz", tmp_path, 3, tmp_path / "caches"))
    assert np.array_equal(cache.frames, np.concatenate([train, test]))
    assert cache.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert len(cache.train_indices) == 6
    assert cache.scale == 1.0
    with pytest.raises(UsageError, match="has 3 timesteps, not 8; use --timesteps 3"):
        prepare("npz", tmp_path, 8, tmp_path / "caches")


@pytest.mark.parametrize("compressed", [False, True])
def test_one_part_of_gray_images(tmp_path: Path, compressed: bool) -> None:
    """[N, H, W] images have one channel; 20 % of every class become the test part."""
    x, y = _x(30, 4, 5), np.arange(30) % 3
    (np.savez_compressed if compressed else np.savez)(tmp_path / "own.npz", x=x, y=y)
    assert describe("npz", tmp_path / "own.npz") == DatasetInfo("npz", (1, 4, 5), 3, static=True)
    cache = FrameCache.open(prepare("npz", tmp_path, 8, tmp_path / "caches"))
    assert np.bincount(cache.labels[cache.test_indices]).tolist() == [2, 2, 2]
    assert cache.scale == 1 / 255
    assert cache.timesteps is None
    sums = {(int(s), int(k)) for s, k in zip(x.sum((1, 2)), y, strict=True)}
    found = zip(cache.frames.sum((1, 2, 3)), cache.labels, strict=True)
    assert {(int(s), int(k)) for s, k in found} == sums
    assert prepare("npz", tmp_path, 4, tmp_path / "caches") == cache.path  # T is no matter


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


X, Y = np.zeros((10, 4, 4), np.uint8), np.arange(10) % 2
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": X, "y": np.array([_Bomb()] * 10, dtype=object)}, "pickled Python objects; refused"),
    ({"x": np.array([_Bomb()] * 10, dtype=object), "y": Y}, "pickled Python objects; refused"),
    ({"x": X.astype(np.float32), "y": Y}, "x is float32, not uint8"),
    ({"x": X[0], "y": Y[:4]}, r"x has shape [4, 4]; wanted [N, H, W]"),
    ({"x": X[:, :0], "y": Y}, "none empty"),
    ({"x": X[:0], "y": Y[:0]}, "none empty"),
    ({"x": np.asfortranarray(X), "y": Y}, "Fortran order"),
    ({"x": X, "y": Y[:9]}, "y is int64 [9]; wanted whole numbers, [10]"),
    ({"x": X, "y": Y.astype(float)}, "y is float64 [10]"),
    ({"x": X, "y": Y[:, None]}, "y is int64 [10, 1]"),
    ({"x": X, "y": Y - 1}, "y holds labels -1 to 0"),
    ({"x": X, "y": Y + 2**40}, "they must be 0 to 65535"),
    ({"x": X, "y": np.full(10, 2**64 - 1, np.uint64)}, "they must be 0 to 65535"),
    ({"x": X, "y": np.arange(10)}, "too few samples"),
    ({"x": X}, "holds x; wanted train_x"),
    ({}, "holds nothing"),
    ({"train_x": X, "train_y": Y, "test_x": X[:, 1:], "test_y": Y}, "differ in shape"),
    ({"train_x": X, "train_y": Y, "test_x": X, "test_y": Y + 1}, "above every training label"),
]


@pytest.mark.parametrize(("arrays", "text"), REFUSED)
def test_refused(tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    """Wrong types, shapes and labels are named; pickles are never loaded."""
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError) as caught:
        describe("npz", tmp_path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


DAMAGED = [
    _npy(X)[:-1],
    _npy(X) + b"1",
    _npy(X)[:40],
    b"",
    b"not an array",
    _npy(X).replace(b"(10, 4, 4)", b"(9**9, 4, "),
    _npy(X).replace(b"(10, 4, 4)", b"(10, 4, 9)"),
    _npy(X).replace(b"'descr'", b"'descx'"),
    b"\x93NUMPY\x07\x00" + _npy(X)[8:],
]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_member(tmp_path: Path, content: bytes) -> None:
    """Cut, padded or mangled .npy data inside a sound archive."""
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", _npy(Y))
    with pytest.raises(DataError, match=r"own\.npz"):
        describe("npz", tmp_path)


def test_damaged_archive(tmp_path: Path) -> None:
    """A file that is no archive, is cut off, or whose compressed data were altered."""
    path = tmp_path / "own.npz"
    path.write_bytes(b"PK but not really")
    with pytest.raises(DataError, match=r"not a usable \.npz file"):
        describe("npz", tmp_path)
    np.savez_compressed(path, x=_x(50, 8, 8), y=np.arange(50) % 2)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-30])
    with pytest.raises(DataError, match=r"not a usable \.npz file"):
        describe("npz", tmp_path)
    content[2000] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a usable \.npz file"):
        prepare("npz", tmp_path, cache_dir=tmp_path / "caches")


def test_which_file(tmp_path: Path) -> None:
    """With two files in the folder, the user must say which."""
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    np.savez(tmp_path / "b.npz", x=X, y=Y)
    with pytest.raises(UsageError, match=r"holds 2 \.npz files; pass the one file"):
        describe("npz", tmp_path)
    assert describe("npz", tmp_path / "b.npz").num_classes == 2
