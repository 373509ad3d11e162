"""The two channel halves of a stream, each contiguous, in the memory of the stream itself.

A stream ``[T, B, 2*C, ...]`` holds the halves of each plane side by side; a branch reads one half of all planes. Split
into tensors of their own they would stand beside the stream for a moment, and that moment would be the peak of a
coupling's backward pass: the stream, its halves and its gradient. So the halves change places within the stream.
"""

import torch
from torch import Tensor

from revedge.engine.run import Given
from revedge.engine.signal import CHUNK_BYTES


def split(x: Given) -> list[Tensor]:
    """Return the halves ``[T, B, C, ...]`` of ``x`` ``[T, B, 2*C, ...]``.

    Both lie in the memory of ``x`` if that is free, else in one copy. Cost: two copies of the stream, in pieces.
    """
    stream = x.take_writable()
    planes, (time, batch, channels, *rest) = stream.shape[0] * stream.shape[1], stream.shape
    _swap(stream, planes, 2)
    halves = stream.view(2, time, batch, channels // 2, *rest)
    return [halves[0], halves[1]]


def copies(x: Tensor) -> list[Tensor]:
    """Return the halves ``[T, B, C, ...]`` of ``x`` ``[T, B, 2*C, ...]`` in memory of their own."""
    # Not `contiguous`: the halves of a single plane are that already, and would be parts of ``x``.
    half = x.shape[2] // 2
    parts = (x[:, :, :half], x[:, :, half:])
    return [each.clone(memory_format=torch.contiguous_format) for each in parts]


def merge(halves: list[Tensor]) -> Tensor:
    """Return the stream ``[T, B, 2*C, ...]`` of its ``halves``: in their memory if they lie as `split` laid them."""
    first, second = halves
    if not _neighbors(first, second):
        return torch.cat(halves, 2)
    time, batch, channels, *rest = first.shape
    stream = first.as_strided((2 * first.numel(),), (1,), first.storage_offset())
    _swap(stream, 2, time * batch)
    return stream.view(time, batch, 2 * channels, *rest)


def _neighbors(first: Tensor, second: Tensor) -> bool:
    same = first.untyped_storage()._cdata == second.untyped_storage()._cdata
    together = second.storage_offset() == first.storage_offset() + first.numel()
    return same and together and first.is_contiguous() and second.is_contiguous()


def _swap(x: Tensor, rows: int, columns: int) -> None:
    """Transpose the matrix of ``rows`` by ``columns`` blocks that ``x`` is, in place.

    Every element of a block moves as its first one does; so a stripe through all blocks moves by itself.
    """
    blocks = x.view(rows, columns, -1)
    count = -(-4 * x.numel() // CHUNK_BYTES)
    width = max(1, -(-blocks.shape[2] // max(1, count)))
    moved = x.view(columns, rows, -1)
    for first in range(0, blocks.shape[2], width):
        part = slice(first, first + width)
        moved[:, :, part] = (
            blocks[:, :, part].transpose(0, 1).clone(memory_format=torch.contiguous_format)
        )
