"""The allocator policy of a training process, set from inside it: memory that is freed goes back to
the system.

glibc keeps freed memory for later use, and a training step then stands at twice its live bytes.
With a fixed mmap threshold every tensor of 64 KiB or more has its own mapping, which leaves the
process the moment it is freed: peak RSS is then the live bytes within one MiB, at the price of page
faults. Both the process that trains and the children in which the planner measures must follow the
same policy, so it stands here, importing nothing of ours.
"""

import ctypes
import os

MMAP_THRESHOLD_BYTES = 64 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h
_MMAP_MAX = 1 << 20  # mappings at once; glibc's 65,536 is a count that a deep network can reach


def return_freed_memory() -> bool:
    """Make malloc map every block of 64 KiB or more by itself, and trim the heap's top; returns
    whether it took.

    Call it before the first large allocation (before importing torch). False on a C library without
    mallopt (musl, macOS): the process then runs, but its peak is not the planned one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = (
        (_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (_M_MMAP_MAX, _MMAP_MAX),
    )
    return all(mallopt(ctypes.c_int(which), ctypes.c_int(value)) == 1 for which, value in settings)


def trim() -> bool:
    """Give back what the heap holds free; returns whether anything went back."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0)))
    except (AttributeError, OSError):
        return False


def page_bytes() -> int:
    """Return the size of a memory page (4 KiB on most machines, 16 KiB on a Raspberry Pi 5)."""
    return os.sysconf("SC_PAGE_SIZE")
