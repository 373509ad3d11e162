"""What the supervisor wants of the trainer: one byte that both see, and a signal that says it has changed.

The byte is a level, not a message: none can be lost, and a trainer that is busy reads the newest when it can. It lies
in a page of shared memory (a file without a name), so reading it costs 0.1 us and no system call.
"""

import contextlib
import mmap
import os
import signal

GO_ON = 0
GIVE_BACK = 1  # hand free memory to the system, and go on
PAUSE = 2  # hold still at the next end of a step, with a checkpoint, taking as little as can be
GIVE_UP = 3  # end as out of memory, at once
SIGNAL = signal.SIGUSR1  # sent with every change


class Orders:
    """The page; the supervisor makes it, the trainer opens it by the file descriptor that it inherits.

    Args:
        handle: file descriptor of a page that exists; None makes one.
    """

    def __init__(self, handle: int | None = None) -> None:
        if handle is None:
            handle = os.memfd_create("revedge-orders")
            os.ftruncate(handle, mmap.PAGESIZE)
        self.handle = handle
        self._page = mmap.mmap(handle, mmap.PAGESIZE)

    def now(self) -> int:
        """Return what is wanted at this moment."""
        return self._page[0]

    def give(self, order: int, pid: int | None) -> None:
        """Want `order` from now on, and wake the trainer `pid` (None: there is none yet)."""
        self._page[0] = order
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGNAL)

    def close(self) -> None:
        """Let go of the page."""
        self._page.close()
        os.close(self.handle)
