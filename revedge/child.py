"""Start our own modules in a child process that runs the very same revedge, wherever the user stands.

``python -m`` puts the working directory first on the path: in a folder that holds a checkout, the child would run
another revedge than its parent. So the child is told where this one lies, and does not look into the working directory.
"""

import os
import pathlib
import sys

_HOME = pathlib.Path(__file__).resolve().parents[1]
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
    return found | more
