"""Start our own modules in a child process that runs the very same revedge, wherever the user stands.

``python -m`` puts the working directory first on the path: in a folder that holds a checkout, the child would run
another revedge than its parent. So the child is told where this one lies, and does not look into the working directory.
"""

import os
import pathlib
import sys

_HOME = str(pathlib.Path(__file__).resolve().parents[1])


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line of ``python -m module`` with ``arguments``; to be run with `environment`."""
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    return [sys.executable, *safe_path, "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment with this revedge first on the module path, and ``more``."""
    path = os.pathsep.join([_HOME, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **more}
