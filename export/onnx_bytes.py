"""Does an ONNX file keep data in other files, and what is it? Read from its bytes, without the package onnx.

Every file of `revedge export` is complete in itself. Old versions of onnxruntime follow a path that leads out of the
folder of a file (1.18: ``../`` and symbolic links), so a file that names another one is refused before they see it.
Only tags and lengths are looked at; the weights are skipped, so of a mapped file they never come into memory.

`outline` is the model without its large weights, which it names as a part of its own file: what a runtime reads of
such a model it reads where it needs it, and need not hold twice.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from revedge.errors import ExportError, UsageError

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
_OF_GRAPHS = {  # the same as far as weights of a graph and of bodies inside it are concerned
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {6: "graph"},
}
_METADATA = 14  # of ModelProto: entries of key, 1, and value, 2
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of TensorProto
_RAW_DATA = 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LARGE_BYTES = 1 << 16
_DEEPEST = 64
_LARGEST_TAG = 1 << 32
Content = bytes | mmap.mmap


def require_onnx(path: Path) -> None:
    """Raise for no file, and for the other formats of `revedge export`, which their first bytes tell.

    Raises:
        UsageError: what it is, and what reads it.
    """
    if not path.is_file():
        what = (
            "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        )
        raise UsageError(
            f"{path} {what}; name an ONNX file, written with: revedge export RUN -o DIR"
        )
    with path.open("rb") as stream:
        begin = stream.read(4)
    if begin == b"PK\x03\x04":
        what = {
            ".pt2": "a program of torch.export (torch.export.load reads it)",
            ".npz": "an archive of arrays, as golden files and recordings are",
        }.get(path.suffix, "a TorchScript file (torch.jit.load reads it)")
    elif begin == b"\x89HDF":
        what = "a NIR graph (revedge.export.nir_import.read_nir reads it)"
    else:
        return
    raise UsageError(
        f"{path} is {what}, and this needs an ONNX file; write one with: revedge export RUN --format onnx"
    )


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


def outline(path: Path) -> bytes:
    """Return the model of ``path`` with every large tensor of its graphs lying, as it says, in the file ``path``.

    Raises:
        ExportError: no protocol buffer.
    """
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return b"".join(_outline(content, 0, len(content), "model", path.name, 0))
    except ValueError:
        raise ExportError(f"{path} is damaged, or not an ONNX model") from None


def _outline(
    content: Content, begin: int, end: int, kind: str, name: str, depth: int
) -> Iterator[bytes]:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    done = begin
    for at, number, first, last in _spans(content, begin, end):
        large = kind == "tensor" and number == _RAW_DATA and last - first >= _LARGE_BYTES
        inside = _OF_GRAPHS.get(kind, {}).get(number)
        if last < 0 or not (large or inside):
            continue  # as it is
        yield bytes(content[done:at])
        done = last
        if inside:
            yield _message(number, *_outline(content, first, last, inside, name, depth + 1))
            continue
        place = {"location": name, "offset": str(first), "length": str(last - first)}
        for key, value in place.items():
            entry = _message(1, key.encode()), _message(2, value.encode())
            yield _message(_EXTERNAL_DATA, *entry)
        yield _number(_DATA_LOCATION << 3 | _VARINT) + _number(1)
    yield bytes(content[done:end])


def _message(number: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return _number(number << 3 | _BYTES) + _number(len(content)) + content


def _number(value: int) -> bytes:
    """A varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _fields(content: Content, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, then begin and end of its bytes, or its value and -1 if it is a number."""
    return ((number, first, last) for _, number, first, last in _spans(content, at, end))


def _spans(content: Content, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """As `_fields`, and first where the field itself begins."""
    while at < end:
        begin = at
        tag, at = _varint(content, at, end)
        number, wire = tag >> 3, tag & 7
        if tag >= _LARGEST_TAG:
            raise ValueError("no such field")
        if wire == _VARINT:
            value, at = _varint(content, at, end)
            yield begin, number, value, -1
            continue
        if wire == _BYTES:
            length, at = _varint(content, at, end)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(wire, end)
        if at + length > end:
            raise ValueError("a field is longer than its message")
        yield begin, number, at, at + length
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
