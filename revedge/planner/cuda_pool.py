"""What torch's CUDA caching allocator reserves for a list of allocations: its rules, replayed on one stream.

The rules are those of c10/cuda/CUDACachingAllocator.cpp with its default settings (no expandable segments, no rounding
to powers of two), as they stand in torch 2.0 to 2.13:

    a block is rounded up to 512 bytes; up to 1 MiB it comes from the small pool, above from the large one
    of the free blocks of its pool the smallest that is large enough is taken, of equal ones that at the lowest address
    where there is none, the driver gives a segment: 2 MiB for a small block, 20 MiB for one below 10 MiB, else the
    block rounded up to 2 MiB
    the rest of a block becomes a block of its own, in the small pool from 512 bytes on, in the large one above 1 MiB
    a freed block is merged with its free neighbors in the segment; segments are kept

Free of torch.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

_MIB = 1 << 20
_ROUND = 512
_SMALL = _MIB  # the largest block of the small pool
_SMALL_SEGMENT, _LARGE_SEGMENT = 2 * _MIB, 20 * _MIB
_OWN_SEGMENT = 10 * _MIB  # from here on a block has a segment of its own size

Event = tuple[int, int]  # (name of a block, its bytes; 0: it is freed)


@dataclass(slots=True)
class _Block:
    """A piece of a segment, and its neighbors there."""

    address: int
    size_bytes: int
    small: bool
    free: bool = True
    before: "_Block | None" = None
    after: "_Block | None" = None

    @property
    def order(self) -> tuple[int, int]:
        """By which free blocks are sorted."""
        return self.size_bytes, self.address


class CudaPool:
    """The caching allocator of one device and one stream.

    Addresses of segments are taken to rise in the order in which they are made.
    """

    def __init__(self) -> None:
        self.reserved_bytes = 0  # it never falls
        self.allocated_bytes = 0
        self._blocks: dict[int, _Block] = {}
        self._free: dict[bool, list[_Block]] = {True: [], False: []}
        self._next_address = 0

    def allocate(self, name: int, size_bytes: int) -> None:
        """Take a block called ``name``; nothing for 0 bytes."""
        if size_bytes <= 0:
            return
        size_bytes = -(-size_bytes // _ROUND) * _ROUND
        block = self._fitting(size_bytes) or self._segment(size_bytes)
        rest = block.size_bytes - size_bytes
        if rest >= _ROUND if block.small else rest > _SMALL:
            after = _Block(block.address + size_bytes, rest, block.small, True, block, block.after)
            if block.after is not None:
                block.after.before = after
            block.after, block.size_bytes = after, size_bytes
            self._put_back(after)
        block.free = False
        self._blocks[name] = block
        self.allocated_bytes += block.size_bytes

    def free(self, name: int) -> None:
        """Give the block called ``name`` back to its pool."""
        block = self._blocks.pop(name, None)
        if block is None:  # of 0 bytes
            return
        self.allocated_bytes -= block.size_bytes
        block.free = True
        for other in (block.before, block.after):
            if other is None or not other.free:
                continue
            self._take(other)
            first, second = (other, block) if other is block.before else (block, other)
            first.size_bytes += second.size_bytes
            first.after = second.after
            if second.after is not None:
                second.after.before = first
            block = first
        self._put_back(block)

    def _fitting(self, size_bytes: int) -> _Block | None:
        free = self._free[size_bytes <= _SMALL]
        place = bisect.bisect_left(free, (size_bytes, -1), key=lambda each: each.order)
        return free.pop(place) if place < len(free) else None

    def _segment(self, size_bytes: int) -> _Block:
        if size_bytes <= _SMALL:
            whole = _SMALL_SEGMENT
        elif size_bytes < _OWN_SEGMENT:
            whole = _LARGE_SEGMENT
        else:
            whole = -(-size_bytes // _SMALL_SEGMENT) * _SMALL_SEGMENT
        self.reserved_bytes += whole
        block = _Block(self._next_address, whole, size_bytes <= _SMALL)
        self._next_address += whole
        return block

    def _put_back(self, block: _Block) -> None:
        bisect.insort(self._free[block.small], block, key=lambda each: each.order)

    def _take(self, block: _Block) -> None:
        free = self._free[block.small]
        del free[bisect.bisect_left(free, block.order, key=lambda each: each.order)]


def reserved_bytes(events: Iterable[Event], *, steps: int = 3) -> int:
    """Return what is reserved after a training of several equal steps.

    Args:
        events: of one step, in order; what it does not free (weights) stays, and is not taken again.
        steps: how often it is repeated: pieces that do not fit well can add a segment in a later step.
    """
    pool, events = CudaPool(), list(events)
    freed = {name for name, size_bytes in events if size_bytes == 0}
    for step in range(steps):
        for name, size_bytes in events:
            if size_bytes == 0:
                pool.free(name)
            elif step == 0 or name in freed:
                pool.allocate(name, size_bytes)
    return pool.reserved_bytes
