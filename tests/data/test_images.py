"""Folders of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from revedge.data import DatasetInfo, FrameCache, describe, prepare
from revedge.errors import DataError, UsageError


def _pixels(mode: str, seed: int) -> np.ndarray:  # type: ignore[type-arg]
    shape = (5, 7) if mode == "L" else (5, 7, 3)
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def _write(root: Path, mode: str) -> Path:
    for part, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 10 * label + number
                Image.fromarray(_pixels(mode, seed)).save(folder / f"{number}.png")
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    return root


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folder_of_images(tmp_path: Path, mode: str, channels: int) -> None:
    """Gray images have one channel, colored ones three; classes are the sorted folder names."""
    root = _write(tmp_path / "images", mode)
    assert describe("folder", root) == DatasetInfo("folder", (channels, 5, 7), 2, static=True)
    cache = FrameCache.open(prepare("folder", root, 8, tmp_path / "caches"))
    assert cache.class_names == ("cat", "dog")
    assert cache.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert len(cache.train_indices) == 6
    assert cache.scale == 1 / 255
    expected = _pixels(mode, 11).reshape(5, 7, channels).transpose(2, 0, 1)
    assert np.array_equal(cache.frames[4], expected)


def test_damaged_images(tmp_path: Path) -> None:
    """Unreadable, truncated, other size, other colors, 16 bits: the file is named, no cache results."""
    root = _write(tmp_path / "images", "L")
    victim = root / "test" / "dog" / "0.png"
    good = victim.read_bytes()
    wide = np.zeros((5, 8), np.uint8)
    cases: list[tuple[bytes | Image.Image, str]] = [
        (b"not an image", "cannot identify image file"),
        (good[: len(good) // 2], "truncated"),
        (b"", "cannot identify image file"),
        (Image.fromarray(wide), "is 8 x 5, the first image 7 x 5 pixels"),
        (Image.fromarray(_pixels("RGB", 0)), "has colors, the first image is gray"),
        (Image.fromarray(wide.astype(np.uint16)), "save it with 8 bits a channel"),
    ]
    for content, text in cases:
        if isinstance(content, bytes):
            victim.write_bytes(content)
        else:
            content.save(victim)
        with pytest.raises(DataError) as caught:
            prepare("folder", root, cache_dir=tmp_path / "caches")
        assert str(caught.value).startswith(str(victim))
        assert text in str(caught.value)
    assert not [path for path in (tmp_path / "caches").iterdir() if path.is_dir()]


def test_folders_that_are_not_complete(tmp_path: Path) -> None:
    """Empty folders and classes without training images."""
    with pytest.raises(UsageError, match="train is not a folder"):
        describe("folder", tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
    with pytest.raises(UsageError, match="has no images in class folders"):
        describe("folder", tmp_path)
    Image.fromarray(_pixels("L", 0)).save(tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(UsageError, match="test has no images in class folders"):
        describe("folder", tmp_path)
    (tmp_path / "test" / "dog").mkdir()
    Image.fromarray(_pixels("L", 0)).save(tmp_path / "test" / "dog" / "a.png")
    with pytest.raises(DataError, match="class 'dog' has no training image"):
        describe("folder", tmp_path)
