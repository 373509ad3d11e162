"""N-MNIST and DVS128 Gesture, from files in their true formats."""

import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from revedge.data import DatasetInfo, FrameCache, describe, prepare
from revedge.errors import DataError, UsageError

RunPython = Callable[..., subprocess.CompletedProcess[str]]
Atis = Callable[[Sequence[tuple[int, int, int, int]]], bytes]
Write = Callable[[Path], Path]

# tonic's own data set classes on the same files: archives in place, their MD5 patched in, no network.
TONIC_NMNIST = """
import hashlib, sys, numpy as np, tonic
from pathlib import Path
root, parts = Path(sys.argv[1]), []
cls = tonic.datasets.NMNIST
for part in ("train", "test"):
    content = (root / "NMNIST" / f"{part}.zip").read_bytes()
    setattr(cls, f"{part}_md5", hashlib.md5(content).hexdigest())
    to_frame = tonic.transforms.ToFrame(sensor_size=cls.sensor_size, n_time_bins=4)
    parts += list(cls(str(root), train=part == "train", transform=to_frame))
np.savez(sys.argv[2], x=np.stack([x for x, _ in parts]), y=[y for _, y in parts])
"""
TONIC_GESTURES = """
import sys, numpy as np, numpy.lib.recfunctions, tonic
cls, parts = tonic.datasets.DVSGesture, []
for train in (True, False):
    to_frame = tonic.transforms.ToFrame(sensor_size=cls.sensor_size, n_time_bins=3)
    data = cls(sys.argv[1], train=train, transform=to_frame)
    order = sorted(range(len(data)), key=lambda i: (data.data[i].rsplit("/", 1)[0], data.targets[i]))
    parts += [data[i] for i in order]
np.savez(sys.argv[2], x=np.stack([x for x, _ in parts]), y=[y for _, y in parts])
"""


def _zip(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*.bin"), reverse=True):
            file.write(path, path.relative_to(folder.parent))


def _same(cache: FrameCache, expected: Path) -> bool:
    with np.load(expected) as arrays:
        same_frames = np.array_equal(cache.frames, arrays["x"])
        return same_frames and cache.labels.tolist() == arrays["y"].tolist()


def test_nmnist_archives_as_tonic_reads_them(
    nmnist_folder: Write, tmp_path: Path, run_python: RunPython
) -> None:
    """The published layout, train.zip and test.zip: the frames are those of tonic's own class."""
    plain = nmnist_folder(tmp_path / "plain")
    (tmp_path / "data" / "NMNIST").mkdir(parents=True)
    for part in ("Train", "Test"):
        _zip(plain / part, tmp_path / "data" / "NMNIST" / f"{part.lower()}.zip")
    cache = FrameCache.open(prepare("nmnist", tmp_path / "data", 4, tmp_path / "caches"))
    result = run_python("-W", "ignore", "-c", TONIC_NMNIST, str(tmp_path / "data"), "want.npz")
    assert result.returncode == 0, result.stderr
    assert _same(cache, tmp_path / "want.npz")
    assert (len(cache.train_indices), len(cache.test_indices)) == (4, 2)
    assert cache.in_shape == (2, 34, 34)


@pytest.mark.parametrize("place", ["NMNIST", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_nmnist_is_found(
    nmnist_folder: Write, tmp_path: Path, place: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders or one zip archive of both parts, in DIR or DIR/NMNIST; described without reading."""
    folder = nmnist_folder(tmp_path / place)
    if packed:
        with zipfile.ZipFile(folder / "part_of_it.zip", "w") as file:
            for path in folder.rglob("*.bin"):
                file.write(path, path.relative_to(folder))
        shutil.rmtree(folder / "Train")
        shutil.rmtree(folder / "Test")
    monkeypatch.setattr(subprocess, "Popen", None)
    assert describe("nmnist", tmp_path) == DatasetInfo("nmnist", (2, 34, 34), 10, static=False)
    if packed:
        archive = folder / "part_of_it.zip"
        assert describe("nmnist", archive) == describe("nmnist", tmp_path)


def test_nmnist_frames_by_hand(atis: Atis, tmp_path: Path) -> None:
    """Events land in the bin, polarity and pixel they belong to, also after a time overflow mark."""
    first = [(3, 5, 0, 1), (33, 0, 100, 0), (3, 5, 999, 1), (3, 5, 999, 1), (0, 33, 2000, 0)]
    overflow = bytes([0, 240, 0, 0, 0])  # from here on, 2**13 us later
    for part in ("Train", "Test"):
        (tmp_path / part / "7").mkdir(parents=True)
        (tmp_path / part / "7" / "1.bin").write_bytes(atis(first))
    late = atis(first[:1]) + overflow + atis([(9, 9, 1000, 0), (8, 8, 2000, 1)])
    (tmp_path / "Train" / "7" / "2.bin").write_bytes(late)
    cache = FrameCache.open(prepare("nmnist", tmp_path, 2, tmp_path / "caches"))
    frame = cache.frames[0]
    assert frame.sum() == 4  # tonic's last bin ends before the last event
    assert (frame[0, 1, 5, 3], frame[0, 0, 0, 33]) == (3, 1)
    # 2.bin: t = 0, 9192, 10192; two bins of 5096 us.
    assert (cache.frames[1][0, 1, 5, 3], cache.frames[1][1, 0, 9, 9]) == (1, 1)
    assert cache.labels.tolist() == [7, 7, 7]
    half = FrameCache.open(prepare("nmnist", tmp_path, 2, tmp_path / "caches", downsample=2))
    assert half.in_shape == (2, 17, 17)
    assert (half.frames[0][0, 1, 2, 1], half.frames[0][0, 0, 0, 16]) == (3, 1)


DAMAGED = [
    (b"", "0 bytes are not a whole number of 5-byte events"),
    (bytes(7), "7 bytes are not a whole number"),
    (bytes([34, 0, 0, 0, 0]), "outside the 34 x 34 sensor"),
    (bytes([0, 240, 0, 0, 0]), "holds no events"),
]


# Reads the data set as the writer does, once with each content of one file; one process for all.
READ_DAMAGED = """
import shutil, sys
from pathlib import Path
from revedge.data._build_cache import open_samples
from revedge.errors import DataError
name, root, victim, *contents = sys.argv[1:]
for content in contents:
    shutil.copy(content, victim)
    try:
        list(open_samples(name, Path(root), 2, 1).frames)
        print("read")
    except DataError as error:
        print(error)
"""


def test_damaged_nmnist(nmnist_folder: Write, tmp_path: Path, run_python: RunPython) -> None:
    """A cut, foreign or empty recording is named; no cache results."""
    root = nmnist_folder(tmp_path / "data")
    victim = root / "Train" / "1" / "00001.bin"
    for index, (content, _) in enumerate(DAMAGED):
        (tmp_path / str(index)).write_bytes(content)
    files = [str(tmp_path / str(index)) for index in range(len(DAMAGED))]
    words = ["-W", "ignore", "-c", READ_DAMAGED, "nmnist", str(root), str(victim), *files]
    lines = run_python(*words).stdout.splitlines()
    for line, (_, text) in zip(lines, DAMAGED, strict=True):
        assert line.startswith(f"{victim}: ")
        assert text in line
    with pytest.raises(DataError, match="holds no events"):
        prepare("nmnist", root, 2, tmp_path / "caches")
    assert not [path for path in (tmp_path / "caches").iterdir() if path.is_dir()]


def test_damaged_nmnist_archive(nmnist_folder: Write, tmp_path: Path) -> None:
    """An archive that is cut off, doubled, or whose bytes were altered."""
    folder = nmnist_folder(tmp_path / "plain" / "x")
    data = tmp_path / "data"
    data.mkdir()
    _zip(folder, data / "a.zip")
    shutil.copy(data / "a.zip", data / "b.zip")
    with pytest.raises(DataError, match=r"is in both .*leave one of the archives"):
        describe("nmnist", data)
    content = bytearray((data / "a.zip").read_bytes())
    (data / "b.zip").write_bytes(content[:-40])
    with pytest.raises(DataError, match="is not a zip archive, or is cut off"):
        describe("nmnist", data)
    (data / "b.zip").unlink()
    content[80:100] = bytes(20)
    (data / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip \(x/.*\.bin\): "):
        prepare("nmnist", data, 2, tmp_path / "caches")


def test_incomplete_nmnist(nmnist_folder: Write, tmp_path: Path) -> None:
    """Without a test part nothing is trained, and nothing is downloaded."""
    shutil.rmtree(nmnist_folder(tmp_path) / "Test")
    with pytest.raises(UsageError, match=r"put train\.zip and test\.zip there"):
        prepare("nmnist", tmp_path, cache_dir=tmp_path / "caches")
    with pytest.raises(UsageError, match="which downsample 3 does not divide; use 1, 2 or 17"):
        prepare("nmnist", nmnist_folder(tmp_path / "NMNIST"), downsample=3)


def _gestures(root: Path, number: int = 100) -> Path:
    """Write ``number`` training and ``number`` test gestures: columns x, y, p, t [ms]."""
    rng = np.random.RandomState(1)
    for part in ("ibmGestureTrain", "ibmGestureTest"):
        for index in range(number):
            folder = root / part / f"user{index // 11 + 1:02d}_led"
            folder.mkdir(parents=True, exist_ok=True)
            table: npt.NDArray[Any] = rng.randint(0, 128, (30, 4))
            table[:, 2] = rng.randint(0, 2, 30)
            table[:, 3] = np.sort(rng.randint(0, 6000, 30))
            np.save(folder / f"{10 - index % 11}.npy", table)
        (root / f"{part}.tar.gz").write_bytes(b"")
    return root


def test_gestures_as_tonic_reads_them(tmp_path: Path, run_python: RunPython) -> None:
    """100 recordings a part: the frames are those of tonic's own class, in sorted order."""
    _gestures(tmp_path / "data" / "DVSGesture")
    info = DatasetInfo("dvsgesture", (2, 128, 128), 11, static=False)
    assert describe("dvsgesture", tmp_path / "data") == info
    cache = FrameCache.open(prepare("dvsgesture", tmp_path / "data", 3, tmp_path / "caches"))
    result = run_python("-W", "ignore", "-c", TONIC_GESTURES, str(tmp_path / "data"), "want.npz")
    assert result.returncode == 0, result.stderr
    assert _same(cache, tmp_path / "want.npz")
    assert cache.labels[:12].tolist() == [*range(11), 0]
    assert cache.class_names[7] == "Arm roll"


def test_small_gestures(tmp_path: Path) -> None:
    """A few recordings are enough; downsampling counts the events of 4 x 4 pixels together."""
    _gestures(tmp_path, 3)
    path = prepare("dvsgesture", tmp_path, 1, tmp_path / "caches", downsample=4)
    cache = FrameCache.open(path)
    assert cache.in_shape == (2, 32, 32)
    table = np.load(tmp_path / "ibmGestureTrain" / "user01_led" / "8.npy")
    counts = np.zeros((2, 32, 32), dtype=int)
    np.add.at(counts, (table[:-1, 2], table[:-1, 1] // 4, table[:-1, 0] // 4), 1)
    assert np.array_equal(cache.frames[0, 0], counts)


def test_damaged_gestures(tmp_path: Path, run_python: RunPython) -> None:
    """Pickles are refused, wrong tables and names are named, packed archives are pointed out."""
    root = _gestures(tmp_path / "data", 2)
    victim = root / "ibmGestureTest" / "user01_led" / "9.npy"
    good = np.load(victim)
    bad: list[tuple[Any, str]] = [
        (np.array([{"a": 1}], dtype=object), "python objects"),
        (good[:, :3], "not the four columns x, y, p, t"),
        (good + 100, "outside the 128 x 128 sensor"),
        (good[:0], "holds no events"),
    ]
    for index, (table, _) in enumerate(bad):
        np.save(tmp_path / f"{index}.npy", table, allow_pickle=True)
    files = [str(tmp_path / f"{index}.npy") for index in range(len(bad))]
    words = ["-W", "ignore", "-c", READ_DAMAGED, "dvsgesture", str(root), str(victim), *files]
    lines = run_python(*words).stdout.splitlines()
    for line, (_, text) in zip(lines, bad, strict=True):
        assert line.startswith(f"{victim}: ")
        assert text in line.lower()
    victim.rename(victim.with_name("11.npy"))
    with pytest.raises(DataError, match="not named after a gesture"):
        describe("dvsgesture", root)
    shutil.rmtree(root / "ibmGestureTest")
    with pytest.raises(UsageError, match=r"ibmGestureTest\.tar\.gz is still packed; run: tar xzf"):
        describe("dvsgesture", root)
