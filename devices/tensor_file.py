"""Tensors in a safetensors file, written from and read into their own memory.

The format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header
`{name: {dtype, shape, data_offsets}}`, then the raw bytes. The safetensors package reads and writes the same files,
but copies every tensor to bytes first; within a memory budget that copy would be the peak. Nothing here can run code.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from revedge.devices.atomic import Bytes, replace_file
from revedge.errors import CheckpointError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK_BYTES = 1 << 20
_encode = json.JSONEncoder(separators=(",", ":")).encode
_MAX_HEADER_BYTES = 100_000_000


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Write `tensors` to `path` atomically and durably.

    Costs no memory beyond the header's text (some 150 bytes a tensor), except for tensors on a GPU or not in C order:
    one copy of one at a time.
    The bytes depend on names, shapes and values only.

    Returns:
        size in bytes and SHA-256 of the file.

    Raises:
        OSError: it cannot be written; an older file of this name is untouched.
    """
    digest, size = hashlib.sha256(), 0

    def chunks() -> Iterator[Bytes]:
        nonlocal size
        for chunk in _chunks(tensors, metadata):
            digest.update(chunk)
            size += memoryview(chunk).nbytes
            yield chunk

    replace_file(path, chunks())
    return size, digest.hexdigest()


def check_file(path: Path, size_bytes: int, sha256: str) -> None:
    """Check size and SHA-256 of a file, reading it once in small pieces.

    Raises:
        CheckpointError: missing, truncated or changed.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size_bytes:
                raise CheckpointError(f"{path.name} is truncated ({found} of {size_bytes} bytes)")
            digest, buffer = hashlib.sha256(), bytearray(_CHUNK_BYTES)
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from None
    if digest.hexdigest() != sha256:
        raise CheckpointError(f"{path.name} is damaged (its SHA-256 is not the one written)")


@torch.no_grad()
def read_tensors(path: Path, into: Mapping[str, Tensor]) -> None:
    """Read a safetensors file into tensors that exist already; names, dtypes and shapes must agree exactly.

    Everything is checked before the first value is changed.

    Raises:
        CheckpointError: not a safetensors file, or of other tensors.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            entries, start = _read_header(file, path)
            _check_entries(entries, into, path, os.fstat(file.fileno()).st_size - start)
            for name, target in into.items():
                file.seek(start + entries[name]["data_offsets"][0])
                direct = target.device.type == "cpu" and target.is_contiguous()
                holder = target if direct else torch.empty(target.shape, dtype=target.dtype)
                _read_all(file, _bytes_of(holder), path)
                if not direct:
                    target.copy_(holder)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None


def _chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Iterator[Bytes]:
    # Wide types first, then by name: every tensor starts at a multiple of its element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    # Entry by entry: a deep network has tens of thousands, and as objects they would take some KiB each at the peak.
    text = bytearray(b"{")
    if metadata:
        text += f'"__metadata__":{_encode(dict(metadata))},'.encode()
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        entry = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        text += f"{_encode(name)}:{_encode(entry)},".encode()
        offset = end
    text[len(text) - text.endswith(b",") :] = b"}"
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        if tensors[name].numel():
            yield _bytes_of(tensors[name].detach().cpu().contiguous())


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor (through numpy's view of its bytes)."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _read_header(file: Any, path: Path) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
        raise CheckpointError(f"{path} is not a safetensors file, or is truncated")
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
    except (ValueError, AttributeError):
        raise CheckpointError(f"{path} has a damaged header") from None
    return header, 8 + length


def _check_entries(
    entries: dict[str, Any], into: Mapping[str, Tensor], path: Path, data_bytes: int
) -> None:
    missing, extra = sorted(into.keys() - entries.keys()), sorted(entries.keys() - into.keys())
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r} too"
        raise CheckpointError(f"{path} holds the tensors of another network ({what})")
    for name, target in into.items():
        entry = entries[name]
        wanted = (_NAMES[target.dtype], list(target.shape))
        try:
            found, (begin, end) = (entry["dtype"], entry["shape"]), entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise CheckpointError(f"{path} has a damaged header") from None
        if found != wanted:
            raise CheckpointError(
                f"{path}: {name!r} is {found[0]}{found[1]}, the network has {wanted[0]}{wanted[1]}"
            )
        if (
            end - begin != target.numel() * target.element_size()
            or not 0 <= begin <= end <= data_bytes
        ):
            raise CheckpointError(f"{path} is truncated")


def _read_all(file: Any, view: memoryview, path: Path) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(f"{path} is truncated")
        view = view[count:]
