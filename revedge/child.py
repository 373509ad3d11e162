"""Start our own modules in a child process that runs the very same revedge, wherever the user stands.

``python -m`` puts the working directory first on the path: in a folder that holds a checkout, the child would run
another revedge than its parent. So the child is told where this one lies, and does not look into the working directory.
"""

import contextlib
import ctypes
import os
import pathlib
import sys
from collections.abc import Iterator

_HOME = pathlib.Path(__file__).resolve().parents[1]
_PERSONALITY_NOW, _ADDR_NO_RANDOMIZE = 0xFFFFFFFF, 0x0040000  # personality(2)
_INSTALLED = _HOME.name in ("site-packages", "dist-packages")  # every child finds that by itself


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line of ``python -m module`` with ``arguments``; to be run with `environment`."""
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    return [sys.executable, *safe_path, "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a child: this process's, so that it finds this revedge, and ``more``."""
    found = dict(os.environ)
    if not _INSTALLED:
        found["PYTHONPATH"] = os.pathsep.join(
            [str(_HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    found.pop("PYTORCH_CUDA_ALLOC_CONF", None)  # expandable segments fail on Tegra
    # Threads that wait by spinning take the cores from those that work as soon as anything else runs
    # (seen: 8 times slower on 2 busy cores).
    found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The same at each start: how dictionaries, and so small blocks of memory, lie.
    found.setdefault("PYTHONHASHSEED", "0")
    return found | more


@contextlib.contextmanager
def same_addresses() -> Iterator[bool]:
    """Give children that are started inside the same addresses at each start; yield whether the system allows it.

    Which pages of libraries and heap are touched depends on where these lie: the peak of one and the same training
    differs by 0.4 MiB from start to start with random addresses and hashes, by 0.1 without (README.md of the planner).
    What is not allowed (by a container's filter of system calls) is left as it is.
    """
    try:
        personality = ctypes.CDLL(None).personality
    except (AttributeError, OSError):  # not Linux
        yield False
        return
    personality.argtypes = [ctypes.c_ulong]
    before = personality(_PERSONALITY_NOW)
    if before == -1:
        yield False
        return
    personality(before | _ADDR_NO_RANDOMIZE)
    try:
        yield bool(personality(_PERSONALITY_NOW) & _ADDR_NO_RANDOMIZE)
    finally:
        personality(before)
