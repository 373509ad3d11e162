"""Child process only: image files -> uint8 [C, H, W] through Pillow."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from revedge.data.image_files import ImageFiles, find_images
from revedge.data.writer import Samples
from revedge.errors import DataError

_GRAY_MODES = ("1", "L", "LA")
_COLOR_MODES = ("P", "PA", "RGB", "RGBA", "YCbCr", "CMYK")


def open_images(data_dir: Path) -> Samples:
    """Return the images of ``data_dir``; the first one decides size, and gray or color."""
    found = find_images(data_dir)
    images = found.train + found.test
    in_shape = image_shape(found)
    return Samples(
        in_shape=in_shape,
        timesteps=None,
        class_names=found.class_names,
        labels=np.array([label for _, label in images], dtype=np.int64),
        num_train=len(found.train),
        scale=1 / 255,
        frames=(_read(path, in_shape) for path, _ in images),
    )


def describe_images(data_dir: Path) -> dict[str, Any]:
    """Return shape and number of classes."""
    found = find_images(data_dir)
    return {"in_shape": list(image_shape(found)), "num_classes": len(found.class_names)}


def image_shape(found: ImageFiles) -> tuple[int, int, int]:
    """(C, H, W) of the first training image: C = 1 if it is gray, 3 if it has colors."""
    path = found.train[0][0]
    with _opened(path) as image:
        return (1 if image.mode in _GRAY_MODES else 3), image.height, image.width


def _read(path: Path, in_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    channels, height, width = in_shape
    with _opened(path) as image:
        if (image.height, image.width) != (height, width):
            sizes = f"{image.width} x {image.height}, the first image {width} x {height}"
            raise DataError(f"{path} is {sizes} pixels; scale all images to one size")
        if channels == 1 and image.mode not in _GRAY_MODES:
            raise DataError(f"{path} has colors, the first image is gray; convert one or the other")
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
        return pixels.reshape(height, width, channels).transpose(2, 0, 1)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises on a damaged one becomes a DataError."""
    try:
        with Image.open(path) as image:
            if image.mode not in _GRAY_MODES + _COLOR_MODES:
                raise DataError(f"{path} has {image.mode} pixels; save it with 8 bits a channel")
            yield image
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        text = str(error).replace(f" {str(path)!r}", "").rstrip(".")
        raise DataError(f"{path}: {text}; replace or remove the file") from None
