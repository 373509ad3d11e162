"""Where revedge keeps what it need not make twice: one folder for frames and measurements. Imports nothing of ours."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $REVEDGE_CACHE, else ``revedge`` in $XDG_CACHE_HOME, else ``~/.cache/revedge``.

    The path is absolute; there may be nothing yet. As its specification says, a
    relative $XDG_CACHE_HOME does not count.
    """
    given = os.environ.get("REVEDGE_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (users if users.is_absolute() else Path.home() / ".cache") / "revedge"
