"""Loads the C library beside this file, if the build made one, and says why not otherwise."""

import ctypes
import os
import pathlib
from typing import Any

import torch  # noqa: F401  # first, so that one OpenMP runtime serves both

ABI_VERSION = 8


def _load() -> tuple[ctypes.CDLL | None, pathlib.Path | None, str]:
    if os.environ.get("REVEDGE_NO_NATIVE") == "1":
        return None, None, "switched off by REVEDGE_NO_NATIVE=1"
    built = sorted(pathlib.Path(__file__).parent.glob("_librevedge.*"))
    if not built:
        return None, None, "not built: no C compiler was found when revedge was installed"
    path = built[0]
    try:
        library = ctypes.CDLL(str(path))
        found = int(library.revedge_abi_version())
    except (OSError, AttributeError) as error:
        return None, path, f"cannot be loaded: {error}"
    if found != ABI_VERSION:
        # Stale, as after an update without a rebuild: running on would crash or be wrong.
        raise ImportError(
            f"{path} has kernel ABI {found}, but this revedge needs {ABI_VERSION}; "
            "reinstall revedge, or delete the file to use the PyTorch kernels"
        )
    return library, path, ""


LIBRARY, _PATH, _REASON = _load()


def native_status() -> dict[str, Any]:
    """Return ``loaded`` (bool), ``openmp`` (bool), ``path`` and ``reason`` (why not loaded)."""
    return {
        "loaded": LIBRARY is not None,
        "openmp": LIBRARY is not None and bool(LIBRARY.revedge_has_openmp()),
        "path": None if _PATH is None else str(_PATH),
        "reason": _REASON,
    }
