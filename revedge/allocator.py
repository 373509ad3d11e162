"""The allocator policy of a training process: its memory is its live bytes, and a step takes no new pages.

glibc keeps freed memory for later use, and a training step then stands at twice its live bytes. Two remedies:

- The arena (kernels/csrc/arena.c), preloaded into our children by `preload`: it serves blocks of 64 KiB or more and
  keeps freed ones for the next step, but never so many that live and kept bytes exceed the peak of the live bytes.
- A fixed mmap threshold, set by `return_freed_memory` from inside the process: every block of 64 KiB or more has its
  own mapping, which leaves the process when it is freed. As small, but each step pays for all its pages anew
  (measured: 1.3 to 2 times the time of a step).

The processes that train and the children in which the planner measures follow the same policy, so it stands here,
importing nothing of ours.
"""

import ctypes
import os
import pathlib

MMAP_THRESHOLD_BYTES = 64 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h
_MMAP_MAX = 1 << 20  # mappings at once; glibc's 65,536 is a count that a deep network can reach
_ARENA = pathlib.Path(__file__).parent / "kernels" / "_revedge_arena.so"


def preload() -> dict[str, str]:
    """Return what the environment of a training child needs for the arena; empty where there is none.

    There is none without a C compiler at installation, without glibc, where another library is preloaded already
    (an allocator of the user's choice), and with REVEDGE_NO_ARENA=1.
    """
    wanted = os.environ.get("REVEDGE_NO_ARENA") != "1" and not os.environ.get("LD_PRELOAD")
    return {"LD_PRELOAD": str(_ARENA)} if wanted and _ARENA.exists() and _is_glibc() else {}


def arena_bytes() -> tuple[int, int, int] | None:
    """Return (live, kept, largest live so far) of the arena; None if it does not serve this process."""
    try:
        ask = ctypes.CDLL(None).revedge_arena_bytes
    except (AttributeError, OSError):
        return None
    found = (ctypes.c_size_t * 3)()
    ask(found)
    return int(found[0]), int(found[1]), int(found[2])


def return_freed_memory() -> bool:
    """Make malloc map every block of 64 KiB or more by itself, and trim the heap's top; returns
    whether it took.

    Call it before the first large allocation (before importing torch). False on a C library without
    mallopt (musl, macOS): the process then runs, but its peak is not the planned one. Harmless under the arena.
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
    """Give back what is free, and let the arena count its peak from here; returns whether it could be asked."""
    try:
        library = ctypes.CDLL(None)
        if arena_bytes() is not None:
            library.revedge_arena_reset()
        library.malloc_trim(ctypes.c_size_t(0))
    except (AttributeError, OSError):
        return False
    return True


def hold_back(size_bytes: int) -> bool:
    """Hold a part of what RLIMIT_DATA leaves for small blocks and generated code; returns whether it could.

    Address space only, no memory. Once a part of it was needed no large block gets new pages, so that the
    next one fails as torch expects it (kernels/csrc/arena.c). False without the arena, or where the
    limit does not leave so much.
    """
    try:
        return bool(ctypes.CDLL(None).revedge_arena_reserve(ctypes.c_size_t(size_bytes)) == 1)
    except (AttributeError, OSError):
        return False


def page_bytes() -> int:
    """Return the size of a memory page (4 KiB on most machines, 16 KiB on a Raspberry Pi 5)."""
    return os.sysconf("SC_PAGE_SIZE")


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False
