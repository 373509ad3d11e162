"""Finds a folder of images: ``DIR/train/<class>/*`` and ``DIR/test/<class>/*``."""

from dataclasses import dataclass
from pathlib import Path

from revedge.errors import DataError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageFiles:
    """Image files with their labels; a label is the position of its class in the sorted names."""

    root: Path
    class_names: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]

    def files(self) -> list[Path]:
        """Return all files, sorted."""
        return sorted(path for path, _ in self.train + self.test)


def find_images(data_dir: Path) -> ImageFiles:
    """Find the images below ``data_dir``.

    Raises:
        UsageError: no train or test folder, or no image in it.
        DataError: a class has no training image.
    """
    for part in ("train", "test"):
        if not (data_dir / part).is_dir():
            form = "train/<class>/ and test/<class>/ with images"
            raise UsageError(f"{data_dir / part} is not a folder; a folder of images has {form}")
    names = tuple(sorted(_folders(data_dir / "train") | _folders(data_dir / "test")))
    parts = {}
    for part in ("train", "test"):
        parts[part] = tuple(
            (file, label)
            for label, name in enumerate(names)
            for file in sorted((data_dir / part / name).glob("*"))
            if file.suffix.lower() in SUFFIXES
        )
        if not parts[part]:
            kinds = " ".join(SUFFIXES)
            raise UsageError(f"{data_dir / part} has no images in class folders; known: {kinds}")
    trained = {label for _, label in parts["train"]}
    for label, name in enumerate(names):
        if label not in trained:
            where = data_dir / "train" / name
            raise DataError(f"class {name!r} has no training image; put some into {where}")
    return ImageFiles(data_dir, names, parts["train"], parts["test"])


def _folders(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."}
