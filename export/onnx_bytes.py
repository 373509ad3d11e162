"""Does an ONNX file keep data in other files, and what is it? Read from its bytes, without the package onnx.

Every file of `revedge export` is complete in itself. Old versions of onnxruntime follow a path that leads out of the
folder of a file (1.18: ``../`` and symbolic links), so a file that names another one is refused before they see it.
Only tags and lengths are looked at; the weights are skipped, so of a mapped file they never come into memory.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from revedge.errors import ExportError

# Of onnx.proto: what a message holds, by field number, as far as a tensor may be in it.
_HOLDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_METADATA = 14  # of ModelProto: entries of key, 1, and value, 2
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64
_LARGEST_TAG = 1 << 32
Content = bytes | mmap.mmap


def require_complete(path: Path) -> None:
    """Raise unless the ONNX file ``path`` is complete in itself.

    Raises:
        ExportError: it names another file, or is no protocol buffer.
    """
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            outside = names_other_files(content)
    except ValueError:  # of mmap, where the file is empty
        raise ExportError(f"{path} is damaged, or not an ONNX model") from None
    if outside:
        raise ExportError(
            f"{path} keeps data in other files, which no file of revedge does; export the model again"
        )


def metadata_value(model: Path | bytes, key: str) -> str:
    """Return one value of the metadata of an ONNX model, before a runtime opens it; "" without such a key.

    Raises:
        ExportError: no protocol buffer.
    """
    try:
        if isinstance(model, bytes):
            return _metadata_value(model, key)
        with (
            model.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _metadata_value(content, key)
    except ValueError:
        raise ExportError("the model is damaged, or not an ONNX model") from None


def _metadata_value(content: Content, key: str) -> str:
    for number, begin, end in _fields(content, 0, len(content)):
        if number == _METADATA and end >= 0:
            entry = {
                field: content[first:last]
                for field, first, last in _fields(content, begin, end)
                if last >= 0
            }
            if entry.get(1) == key.encode():
                return entry.get(2, b"").decode(errors="replace")
    return ""


def names_other_files(content: Content) -> bool:
    """Whether a tensor of this ``ModelProto`` lies in another file.

    Raises:
        ValueError: the bytes are none.
    """
    return _outside(content, 0, len(content), "model", 0)


def _outside(content: Content, begin: int, end: int, kind: str, depth: int) -> bool:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    for number, first, last in _fields(content, begin, end):
        if kind == "tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and first):
                return True
            continue
        inside = _HOLDS[kind].get(number)
        if inside and last >= 0 and _outside(content, first, last, inside, depth + 1):
            return True
    return False


def _fields(content: Content, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, then begin and end of its bytes, or its value and -1 if it is a number."""
    while at < end:
        tag, at = _varint(content, at, end)
        number, wire = tag >> 3, tag & 7
        if tag >= _LARGEST_TAG:
            raise ValueError("no such field")
        if wire == _VARINT:
            value, at = _varint(content, at, end)
            yield number, value, -1
            continue
        if wire == _BYTES:
            length, at = _varint(content, at, end)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(wire, end)
        if at + length > end:
            raise ValueError("a field is longer than its message")
        yield number, at, at + length
        at += length


def _varint(content: Content, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number does not end")
