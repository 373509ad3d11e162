"""Single recordings: the same events and frames as tonic's, for each format; lines of text; what is damaged."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from revedge.data.event_files import EVENT_DTYPE, Events, events_of, read_events
from revedge.data.event_frames import frames_of
from revedge.data.event_text import Windows, read_lines
from revedge.errors import DataError, UsageError


def _events(count: int, seed: int = 0, side: int = 34) -> Events:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(1000, 300_000, count))
    return events_of(
        t, rng.integers(0, side, count), rng.integers(0, side, count), rng.integers(0, 2, count)
    )


def _nmnist_bytes(count: int) -> bytes:
    """Return a valid N-MNIST recording with two marks of overflow."""
    rng = np.random.default_rng(3)
    x, y, p = rng.integers(0, 34, count), rng.integers(0, 34, count), rng.integers(0, 2, count)
    t = np.sort(rng.integers(0, 1 << 23, count))
    y[[count // 3, count // 2]] = 240
    rows = np.stack([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255], 1)
    return rows.astype(np.uint8).tobytes()


def test_nmnist_file_is_read_as_tonic_reads_it(tmp_path: Path) -> None:
    """The same events, marks of overflow included, and the same frames as ToFrame counts."""
    tonic = pytest.importorskip("tonic")
    path = tmp_path / "00001.bin"
    path.write_bytes(_nmnist_bytes(900))
    theirs = tonic.io.read_mnist_file(str(path), dtype=tonic.datasets.NMNIST.dtype)
    ours = read_events(path)
    for name in ("t", "x", "y", "p"):
        assert np.array_equal(ours[name], np.sort(theirs, order="t", kind="stable")[name])
    frames = tonic.transforms.ToFrame(sensor_size=(34, 34, 2), n_time_bins=7)(theirs)
    assert np.array_equal(frames_of(ours, (2, 34, 34), 7), np.clip(frames, 0, 255))


@pytest.mark.parametrize("timesteps", [1, 4, 16])
def test_frames_are_tonics(timesteps: int) -> None:
    """Also where the length of the recording is no multiple of T, and where polarities count together."""
    tonic = pytest.importorskip("tonic")
    events = _events(5000, seed=timesteps)
    theirs = tonic.transforms.ToFrame(sensor_size=(34, 34, 2), n_time_bins=timesteps)(events)
    assert np.array_equal(frames_of(events, (2, 34, 34), timesteps), theirs)
    together = frames_of(events, (1, 34, 34), timesteps)
    assert np.array_equal(together[:, 0], theirs.sum(1))


def test_recording_shorter_than_its_bins_has_empty_frames() -> None:
    """All events at one time: bins of no length, as in tonic."""
    events = _events(10)
    events["t"] = 5
    assert frames_of(events, (2, 34, 34), 4).sum() == 0


def test_counts_above_255_stay_255() -> None:
    """As in the cache."""
    events = events_of(np.arange(600), np.zeros(600, int), np.zeros(600, int), np.ones(600, int))
    assert frames_of(events, (2, 3, 3), 2)[:, 1, 0, 0].tolist() == [255, 255]


@pytest.mark.parametrize("structured", [False, True])
def test_npz_in_both_forms(structured: bool, tmp_path: Path) -> None:
    """Columns or a structured array; events out of order are sorted, each kept."""
    events = _events(50)
    shuffled = np.random.default_rng(1).permutation(events)
    path = tmp_path / "one.npz"
    if structured:
        np.savez(path, events=shuffled)
    else:
        np.savez(path, t=shuffled["t"], x=shuffled["x"], y=shuffled["y"], p=shuffled["p"])
    found = read_events(path)
    assert found.dtype == EVENT_DTYPE
    assert np.array_equal(np.sort(found), np.sort(events))
    assert np.all(np.diff(found["t"]) >= 0)


_AEDAT = """
import os
import numpy as np
DTYPE = [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), (("p", "on"), "?")]
class Decoder:
    def __init__(self, path):
        content = open(path, "rb").read()
        if content == b"abort":
            os.abort()
        if content == b"broken":
            raise RuntimeError("the packet\\nsize does not match")
        one, two = (np.array([(t, 1, 2, True)], DTYPE) for t in (7, 9))
        self.packets = [(0, "frame", {}), (2, "events", one), (5, "events", two), (2, "events", two)]
    def id_to_stream(self):
        return {0: {"type": "frame"}, 5: {"type": "events"}, 2: {"type": "events"}}
    def __iter__(self):
        return iter({"stream_id": n, kind: content} for n, kind, content in self.packets)
"""


def test_aedat4_through_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest stream of events, all its packets; one that aborts ends the child only; without it: the extra."""
    path = tmp_path / "camera.aedat4"
    path.write_bytes(b"#!AER-DAT4.0")
    package = tmp_path / "packages"
    package.mkdir()
    paths = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", paths)
    (package / "aedat.py").write_text("raise ModuleNotFoundError('aedat')")
    with pytest.raises(UsageError, match=r"pip install 'revedge\[aedat4\]'"):
        read_events(path)
    (package / "aedat.py").write_text(_AEDAT)
    assert read_events(path).tolist() == [(7, 1, 2, 1), (9, 1, 2, 1)]
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"camera\.aedat4 .*the packet size does not match"):
        read_events(path)
    path.write_bytes(b"abort")
    with pytest.raises(DataError, match=r"camera\.aedat4 .*cannot be decoded"):
        read_events(path)


def test_aedat4_of_a_camera() -> None:
    """A file that iniVation's own dv-processing 2.0.4 has written (LZ4, 34x34), event by event, by the real package."""
    pytest.importorskip("aedat", reason="the extra revedge[aedat4] is not installed")
    rng, count = np.random.default_rng(7), 240
    t = np.sort(rng.integers(0, 300_000, count)) + 1_700_000_000_000_000
    x, y, p = rng.integers(0, 34, count), rng.integers(0, 34, count), rng.integers(0, 2, count)
    found = read_events(Path(__file__).with_name("camera.aedat4"))
    assert np.array_equal(found, events_of(t, x, y, p))


def _save(path: Path, **arrays: object) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.bin", lambda p: p.write_bytes(b"1234"), "5-byte events"),
        ("a.bin", lambda p: p.write_bytes(b""), "5-byte events"),
        ("a.npz", lambda p: p.write_bytes(b"PK nonsense"), "damaged"),
        ("a.npz", lambda p: _save(p, t=[1]), "no array x"),
        ("a.npz", lambda p: _save(p, t=[1], x=[1], y=[1], p=[2]), "neither 0 nor 1"),
        ("a.npz", lambda p: _save(p, t=[1.5], x=[1], y=[1], p=[1]), "whole numbers"),
        ("a.npz", lambda p: _save(p, t=[1, 2], x=[1], y=[1], p=[1]), "one length"),
        ("a.npz", lambda p: _save(p, t=[1], x=[1 << 40], y=[1], p=[1]), "out of range"),
        (
            "a.npz",
            lambda p: _save(p, t=[0, 1 << 62], x=[1] * 2, y=[1] * 2, p=[1] * 2),
            "out of range",
        ),
        ("a.npz", lambda p: _save(p, t=[-(2**63)], x=[1], y=[1], p=[1]), "out of range"),
        ("a.npz", lambda p: _save(p, events=np.array([object()])), "damaged"),
        ("a.npz", lambda p: np.savez(p, events=np.empty(0, EVENT_DTYPE)), "no events"),
    ],
)
def test_damaged_recording_is_said(
    name: str, write: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    """One line with the file's name; nothing is unpickled."""
    write(tmp_path / name)
    with pytest.raises(DataError, match=words) as found:
        read_events(tmp_path / name)
    assert name in str(found.value)
    assert "\n" not in str(found.value)


def test_what_inflates_is_not_read(tmp_path: Path) -> None:
    """A small archive whose arrays would be 3 GiB is refused before memory is taken for them."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in "txyp":
            header = io.BytesIO()
            count = 3 << 30 if name == "p" else 1
            claim = {"descr": "|i1", "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(header, claim)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                stream.write(header.getvalue() + bytes(1))
    content = bytearray(path.read_bytes())
    entry = content.rindex(
        b"PK\x01\x02"
    )  # of p: the directory says what it will be, as that of a real one does
    content[entry + 24 : entry + 28] = (3 << 30).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"its arrays are 32.* bytes, at most 2147483648 are read"):
        read_events(path)


def test_wrong_name_is_a_usage_error(tmp_path: Path) -> None:
    """A missing file, and a format that is not known."""
    with pytest.raises(UsageError, match="does not exist"):
        read_events(tmp_path / "none.npz")
    (tmp_path / "a.dat").write_bytes(b"")
    with pytest.raises(UsageError, match=r"\.npz, \.bin, \.aedat4"):
        read_events(tmp_path / "a.dat")


def test_event_outside_of_the_sensor_is_said() -> None:
    """The error names both sizes."""
    with pytest.raises(DataError, match="outside of 16 x 16"):
        frames_of(_events(100), (2, 16, 16), 4)


class _Slow(io.RawIOBase):
    """A stream that gives a few bytes at a time, cutting lines."""

    def __init__(self, content: bytes) -> None:
        self.left = content

    def read1(self, _size: int = -1) -> bytes:
        piece, self.left = self.left[:7], self.left[7:]
        return piece


def _text(events: Events) -> bytes:
    rows = zip(*(events[name].tolist() for name in ("t", "x", "y", "p")), strict=True)
    return "".join(f"{t},{x} {y}\t{p}\n" for t, x, y, p in rows).encode()


def test_lines_arrive_as_events() -> None:
    """Blanks, commas, empty lines, lines in pieces and a last line without an end."""
    events = _events(40)
    content = b"\n" + _text(events).rstrip(b"\n")
    assert np.array_equal(np.concatenate(list(read_lines(_Slow(content)))), events)  # type: ignore[arg-type]
    assert np.array_equal(np.concatenate(list(read_lines(io.BytesIO(content)))), events)


@pytest.mark.parametrize(
    "line",
    [
        "1 2 3",
        "1 2 3 4 5",
        "a 1 1 1",
        "1 1 1 2",
        "1.5 1 1 1",
        "9" * 30 + " 1 1 1",
        "1 " + "9" * 12 + " 1 1",
    ],
)
def test_line_that_is_no_event_is_named(line: str) -> None:
    """By its number."""
    with pytest.raises(DataError, match="line 3 of the events"):
        list(read_lines(io.BytesIO(f"1 1 1 1\n2 1 1 0\n{line}\n".encode())))


def test_line_without_end_is_refused() -> None:
    """Memory stays bounded."""
    with pytest.raises(DataError, match="has no end"):
        list(read_lines(io.BytesIO(b"1" * 300_000)))


@pytest.mark.parametrize("piece", [1, 13, 1000])
def test_windows_are_those_of_the_whole_recording(piece: int) -> None:
    """However the events arrive; windows with nothing in them are left out."""
    events = _events(400)
    events["t"][200:] += 1_000_000
    windows = Windows(50_000)
    found = []
    for begin in range(0, len(events), piece):
        found += list(windows.add(events[begin : begin + piece]))
    found += list(windows.rest())
    start = int(events["t"][0])
    index = (events["t"] - start) // 50_000
    assert [begin for begin, _ in found] == [start + int(k) * 50_000 for k in np.unique(index)]
    for (_, part), k in zip(found, np.unique(index), strict=True):
        assert np.array_equal(part, events[index == k])
    assert windows.late_events == 0


def test_late_events_are_dropped_and_counted() -> None:
    """An event of a window that is closed already; one that is out of order within its window is sorted in."""
    windows = Windows(100)
    order = [0, 50, 40, 120, 99, 130]
    events = events_of(order, [0] * 6, [0] * 6, [0] * 6)
    found = [*windows.add(events), *windows.rest()]
    assert [part["t"].tolist() for _, part in found] == [[0, 40, 50], [120, 130]]
    assert windows.late_events == 1
