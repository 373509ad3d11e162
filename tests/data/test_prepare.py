"""Finding, writing and repairing frame caches, alone and in a race."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from revedge.cli import doctor
from revedge.data import FrameCache, describe, prepare
from revedge.data.prepare import publish
from revedge.errors import DataError, UsageError
from revedge.folders import cache_folder
from revedge.planner.memory import Memory

RunPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Return a .npz file of 20 gray images: the data set that is built fastest."""
    x = np.random.RandomState(0).randint(0, 256, (20, 4, 5)).astype(np.uint8)
    path = tmp_path / "own.npz"
    np.savez(path, x=x, y=np.arange(20) % 2)
    return path


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """Return a folder for caches that does not exist yet."""
    return tmp_path / "a" / "caches"


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("file", ["frames.u8", "labels.i64", "meta.json"])
def test_damaged_cache_is_written_again(
    npz: Path, caches: Path, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Truncated or altered, a cache is replaced, and one line on stderr says so."""
    path = prepare("npz", npz, cache_dir=caches)
    whole = {name: (path / name).read_bytes() for name in os.listdir(path)}
    altered = bytearray(whole[file])
    altered[0] ^= 64
    for content in (whole[file][:-2], bytes(altered), b""):
        (path / file).write_bytes(content)
        assert prepare("npz", npz, cache_dir=caches) == path
        assert {name: (path / name).read_bytes() for name in os.listdir(path)} == whole
        assert "writing it again" in capfd.readouterr().err
    assert _visible(caches) == [path.name]


def test_cache_of_another_version_is_written_again(npz: Path, caches: Path) -> None:
    """A cache that another revedge wrote under this name is replaced, not misread."""
    path = prepare("npz", npz, cache_dir=caches)
    (path / "meta.json").write_text('{"format_version": 99}')
    assert len(FrameCache.open(prepare("npz", npz, cache_dir=caches))) == 20


def test_changed_files_have_another_cache(npz: Path, caches: Path) -> None:
    """A file of another time of change, size or name is other data."""
    paths = {prepare("npz", npz, cache_dir=caches)}
    os.utime(npz, ns=(0, 0))
    paths.add(prepare("npz", npz, cache_dir=caches))
    renamed = npz.rename(npz.with_name("other.npz"))
    paths.add(prepare("npz", renamed, cache_dir=caches))
    assert len(paths) == 3


RACE_CODE = """
import sys, time
from revedge.data import FrameCache, prepare
time.sleep(max(0.0, float(sys.argv[3]) - time.time()))
cache = FrameCache.open(prepare("npz", sys.argv[1], cache_dir=sys.argv[2]))
print(cache.path.name, cache.frames.sum(), len(cache))
"""


def _race(npz: Path, caches: Path, env: dict[str, str]) -> list[str]:
    start_s = str(time.time() + 1.0)
    words = [sys.executable, "-c", RACE_CODE, str(npz), str(caches), start_s]
    racers = [
        subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    results = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, results
    return [stdout for stdout, _ in results]


def test_racing_processes_all_end_well(
    npz: Path, caches: Path, tmp_path: Path, child_env: dict[str, str]
) -> None:
    """Four processes want the same cache at once, first missing and then damaged: one cache results."""
    stub, log = tmp_path / "stub", tmp_path / "builds"
    stub.mkdir()
    (stub / "sitecustomize.py").write_text(
        "import sys\n"
        f"if any('_build_cache' in word for word in sys.orig_argv): open({str(log)!r}, 'a').write('x')\n"
    )
    env = child_env | {"PYTHONPATH": f"{stub}{os.pathsep}{child_env['PYTHONPATH']}"}
    first = set(_race(npz, caches, env))
    assert log.read_text() == "x"  # one of the four wrote, the others waited
    assert len(first) == 1
    name = first.pop().split()[0]
    assert _visible(caches) == [name]
    (caches / name / "frames.u8").write_bytes(b"damaged")
    assert {line.split()[0] for line in _race(npz, caches, child_env)} == {name}
    assert _visible(caches) == [name]


def test_publishing_without_a_lock(npz: Path, caches: Path, tmp_path: Path) -> None:
    """Where the file system has no locks, the first finished cache stays and a damaged one goes."""
    path = prepare("npz", npz, cache_dir=caches)
    key = FrameCache.open(path).meta["key"]
    mine = shutil.copytree(path, tmp_path / "mine")
    inode = path.stat().st_ino
    publish(mine, path, key)
    assert path.stat().st_ino == inode
    (path / "labels.i64").write_bytes(b"")
    publish(mine, path, key)
    assert len(FrameCache.open(path)) == 20
    assert not mine.exists()


def test_left_overs_of_killed_processes_are_removed(npz: Path, caches: Path) -> None:
    """A half-written folder of a process that was killed does not stay on the disk."""
    path = prepare("npz", npz, cache_dir=caches)
    left = caches / f".{path.name}.0123.tmp"
    path.rename(left)
    assert prepare("npz", npz, cache_dir=caches) == path
    assert not left.exists()


def test_default_folder_follows_the_environment(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$REVEDGE_CACHE, else the user's cache folder, else ~/.cache; what doctor looks at, and what the planner uses."""
    monkeypatch.setenv("REVEDGE_CACHE", str(tmp_path / "here"))
    assert prepare("npz", npz).parent == tmp_path / "here"
    monkeypatch.delenv("REVEDGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert prepare("npz", npz).parent == tmp_path / "caches" / "revedge"
    assert doctor._cache().found == str(tmp_path / "caches" / "revedge")
    assert Memory("base.json")._path.parent == tmp_path / "caches" / "revedge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / "home" / ".cache" / "revedge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert prepare("npz", npz).parent == tmp_path / "home" / ".cache" / "revedge"
    monkeypatch.setenv("REVEDGE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "home" / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REVEDGE_CACHE", "beside")
    assert cache_folder() == tmp_path / "beside"


def test_cache_folder_that_cannot_be(npz: Path) -> None:
    """A file where the folder should be is named, with the way out."""
    with pytest.raises(UsageError, match="is not a folder; set REVEDGE_CACHE"):
        prepare("npz", npz, cache_dir=npz)
    with pytest.raises(UsageError, match="is not a folder; set REVEDGE_CACHE"):
        prepare("npz", npz, cache_dir=npz / "below")


def test_full_disk(npz: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room is one line with the bytes that were wanted, and leaves nothing behind."""
    stub = caches.parent / "stub"
    stub.mkdir(parents=True)
    full = "import os\ndef full(*_): raise OSError(28, 'No space left on device')\n"
    (stub / "sitecustomize.py").write_text(full + "os.posix_fallocate = full\n")
    monkeypatch.setenv("PYTHONPATH", str(stub))
    with pytest.raises(DataError, match=r"cannot write 400 B of frames .*No space left.*free some"):
        prepare("npz", npz, cache_dir=caches)
    assert _visible(caches) == []


def test_reader_that_is_not_installed(
    tmp_path: Path, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that only the child needs is missing: the caller learns its name."""
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "sitecustomize.py").write_text("import sys\nsys.modules['sklearn'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(stub))
    with pytest.raises(ModuleNotFoundError) as caught:
        prepare("digits", cache_dir=caches)
    assert str(caught.value.name).startswith("sklearn")


def test_child_that_is_killed(tmp_path: Path, npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child ended by the system (out of memory) is a DataError that says so."""
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", str(stub))
    with pytest.raises(DataError, match="prepares npz was ended by signal 9"):
        prepare("npz", npz, cache_dir=tmp_path / "caches")


WRONG: list[tuple[str, str | None, dict[str, int], str]] = [
    ("digit", None, {}, "no data set is called 'digit'; did you mean digits"),
    ("xyz", None, {}, "choose from digits, nmnist, dvsgesture, npz, folder"),
    ("nmnist", None, {}, "pass its folder with --data-dir"),
    ("nmnist", "nowhere", {}, "no such file or folder"),
    ("dvsgesture", "nowhere", {}, "no such file or folder"),
    ("npz", "nowhere", {}, "no such file or folder"),
    ("folder", "nowhere", {}, "no such file or folder"),
    ("nmnist", ".", {}, "does not hold N-MNIST; put train.zip and test.zip there"),
    ("dvsgesture", ".", {}, "does not hold DVS128 Gesture; unpack ibmGestureTrain.tar.gz"),
    ("npz", ".", {}, "holds no .npz file"),
    ("folder", ".", {}, "train is not a folder"),
    ("digits", None, {"downsample": 2}, "cannot be downsampled"),
    ("nmnist", ".", {"downsample": 0}, "downsample 0 is not a positive"),
    ("digits", None, {"timesteps": 0}, "timesteps 0 is not possible"),
    ("digits", None, {"timesteps": 5000}, "timesteps 5000 is not possible"),
]


@pytest.mark.parametrize(("name", "folder", "options", "text"), WRONG)
def test_what_is_not_there(
    tmp_path: Path, name: str, folder: str | None, options: dict[str, int], text: str
) -> None:
    """Names, folders and options that do not exist: exit code 2, and what to do instead."""
    data_dir = None if folder is None else tmp_path / folder
    with pytest.raises(UsageError) as caught:
        prepare(name, data_dir, cache_dir=tmp_path / "caches", **options)
    assert text in str(caught.value)
    assert caught.value.exit_code == 2
    if "timesteps" not in options:
        with pytest.raises(UsageError):
            describe(name, data_dir, **options)


def test_long_builds_report_progress(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The child's progress lines reach this process's stderr: how many, how fast, how long still."""
    stub = tmp_path / "stub"
    stub.mkdir()
    ticks = "import itertools, time\nticks = itertools.count()\n"
    (stub / "sitecustomize.py").write_text(f"{ticks}time.monotonic = lambda: 4.0 * next(ticks)\n")
    monkeypatch.setenv("PYTHONPATH", str(stub))
    prepare("npz", npz, cache_dir=tmp_path / "caches")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[9] == "revedge: preparing npz: 10 of 20, 0.25/s, 40 s left"
