"""Finds event recordings of public data sets on disk; nothing is downloaded.

N-MNIST: ``Train/<digit>/*.bin`` and ``Test/<digit>/*.bin``, as folders or inside zip archives (the
published train.zip and test.zip, or any other), in DIR or in DIR/NMNIST.
DVS128 Gesture, in tonic's form: ``ibmGestureTrain/userNN_light/<label>.npy`` and the same under
``ibmGestureTest``, in DIR or in DIR/DVSGesture.
"""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from revedge.errors import DataError, UsageError

_NMNIST_MEMBER = re.compile(r"(?:.*/)?(Train|Test)/([0-9])/([^/]+\.bin)")
_GESTURES = 11


@dataclass(frozen=True)
class Recording:
    """One recording: a file, or (``member``) a file inside the zip archive ``path``."""

    path: Path
    label: int
    member: str = ""

    def __str__(self) -> str:
        """Return how messages name it."""
        return f"{self.path} ({self.member})" if self.member else str(self.path)


@dataclass(frozen=True)
class Recordings:
    """The two parts of a data set, each sorted, whatever order the file system has."""

    root: Path
    train: tuple[Recording, ...]
    test: tuple[Recording, ...]

    def files(self) -> list[Path]:
        """Return all files on disk, sorted, each once."""
        return sorted({recording.path for recording in self.train + self.test})


def find_nmnist(data_dir: Path) -> Recordings:
    """Find N-MNIST, whole or in part.

    Raises:
        UsageError: one of the two parts is not there.
        DataError: an archive is damaged, or two archives hold the same recording.
    """
    places = [data_dir] if data_dir.is_file() else [data_dir / "NMNIST", data_dir]
    for place in places:
        archived = _archived_nmnist(place)
        parts = [_nmnist_folder(place / name) or archived[name] for name in ("Train", "Test")]
        if all(parts):
            return Recordings(place if place.is_dir() else place.parent, parts[0], parts[1])
    raise UsageError(
        f"{data_dir} does not hold N-MNIST; put train.zip and test.zip there, or folders "
        f"Train/<digit> and Test/<digit> with .bin files"
    )


def find_dvsgesture(data_dir: Path) -> Recordings:
    """Find DVS128 Gesture, whole or in part.

    Raises:
        UsageError: one of the two parts is not there, or still packed.
        DataError: a file is not named after one of the 11 gestures.
    """
    names = ("ibmGestureTrain", "ibmGestureTest")
    for place in (data_dir / "DVSGesture", data_dir):
        parts = [_gesture_folder(place / name) for name in names]
        if all(parts):
            return Recordings(place, parts[0], parts[1])
        for name, part in zip(names, parts, strict=True):
            archive = place / f"{name}.tar.gz"
            if not part and archive.is_file():
                raise UsageError(f"{archive} is still packed; run: tar xzf {archive} -C {place}")
    raise UsageError(
        f"{data_dir} does not hold DVS128 Gesture; unpack ibmGestureTrain.tar.gz and "
        f"ibmGestureTest.tar.gz there (folders ibmGestureTrain/userNN_light with .npy files)"
    )


def _nmnist_folder(folder: Path) -> tuple[Recording, ...]:
    return tuple(
        Recording(file, digit)
        for digit in range(10)
        for file in sorted((folder / str(digit)).glob("*.bin"))
    )


def _archived_nmnist(place: Path) -> dict[str, tuple[Recording, ...]]:
    """Recordings inside the zip archives of ``place`` (a folder, or one archive)."""
    archives = [place] if place.is_file() else sorted(place.glob("*.zip"))
    found: dict[tuple[str, int, str], Recording] = {}
    for archive in archives:
        for member in _members(archive):
            match = _NMNIST_MEMBER.fullmatch(member)
            if match is None:
                continue
            where = (match[1], int(match[2]), match[3])
            if where in found:
                both = f"{found[where]} and {archive}"
                raise DataError(f"{member} is in both {both}; leave one of the archives")
            found[where] = Recording(archive, int(match[2]), member)
    return {
        part: tuple(found[where] for where in sorted(found) if where[0] == part)
        for part in ("Train", "Test")
    }


def _members(archive: Path) -> list[str]:
    if archive.stat().st_size == 0:  # tonic's sign for "already unpacked"
        return []
    try:
        with zipfile.ZipFile(archive) as file:
            return file.namelist()
    except zipfile.BadZipFile:
        raise DataError(f"{archive} is not a zip archive, or is cut off; copy it again") from None


def _gesture_folder(folder: Path) -> tuple[Recording, ...]:
    return tuple(sorted(_gestures(folder), key=lambda found: (found.path.parent, found.label)))


def _gestures(folder: Path) -> Iterator[Recording]:
    for file in folder.glob("user*/*.npy"):
        name = file.stem
        if not (name.isascii() and name.isdigit() and int(name) < _GESTURES):
            raise DataError(f"{file} is not named after a gesture; expected 0.npy to 10.npy")
        yield Recording(file, int(name))
