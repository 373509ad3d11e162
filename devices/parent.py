"""Ties a child process to its parent: it ends with it, whatever ends the parent."""

import ctypes
import os
import signal

from revedge.errors import DeviceError

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the process `parent_pid` ends.

    Raises:
        DeviceError: the parent has ended already.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Asked after the request: a parent that ended before it has sent no signal.
    if os.getppid() != parent_pid:
        raise DeviceError(
            f"the process that this one works for ({parent_pid}) has ended, so it ends too"
        )


def let_kernel_choose_this_first() -> None:
    """Ask the kernel to kill this process before others (sshd, the desktop) when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")
    except OSError:
        pass
