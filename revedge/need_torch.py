"""Importing this says in one line what to do where torch is missing; with torch it costs nothing, and imports none.

torch is no requirement of the package: a Jetson needs the one of its JetPack, which pip must not replace, and a board
that only runs exported files needs none. Every package here that imports torch imports this first.
"""

from importlib.util import find_spec
from pathlib import Path

from revedge.errors import TorchMissingError

_JETSON = Path("/etc/nv_tegra_release")


def _there() -> bool:
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):  # hidden on purpose, as tests do
        return False


def how_to_install() -> str:
    """Return what to type on this machine."""
    if _JETSON.exists():
        return (
            "install the one of this board's JetPack, as NVIDIA's page on PyTorch for Jetson says"
        )
    return "install it with: pip install 'revedge[train]'"


if not _there():
    raise TorchMissingError(
        f"this needs torch, which is not installed; {how_to_install()} (revedge run needs none)",
        name="torch",
    )
