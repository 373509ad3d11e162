"""Finds out, when the first CUDA tensor arrives, whether the Triton kernels can be used there.

Not earlier: the import adds 74 MB to what is resident (7 MB of it anonymous), and compiling some 55 MB
more (11 MB), which a machine without a GPU need not pay.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from types import ModuleType
from typing import Any

import torch


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("REVEDGE_NO_TRITON") == "1":
        return None, "switched off by REVEDGE_NO_TRITON=1"
    if importlib.util.find_spec("triton") is None:
        return None, "Triton is not installed"
    if not torch.cuda.is_available():
        return None, "torch sees no CUDA device"
    try:
        kernels = importlib.import_module("revedge.kernels.triton")
        # Triton builds its launcher with a C compiler and asks the driver for much: try it.
        s = torch.tensor([0.0, 1.0, 0.0, 1.0], device="cuda")
        packed = kernels.pack_bits(s).tolist()
    except Exception as error:  # whatever it is, the reference does the work
        reason = f"Triton cannot be used: {type(error).__name__}: {error}"
        warnings.warn(f"{reason}; the slower PyTorch reference runs", RuntimeWarning, stacklevel=2)
        return None, reason
    if packed != [10]:
        return None, f"Triton computes wrongly here: spikes 2 and 4 packed to {packed}, not [10]"
    return kernels, ""


def triton_kernels() -> ModuleType | None:
    """Return :mod:`revedge.kernels.triton`, or None where it cannot be used."""
    return _load()[0]


def triton_status() -> dict[str, Any]:
    """Return ``loaded`` (bool) and ``reason`` (why not); tries a kernel if there is a GPU."""
    kernels, reason = _load()
    return {"loaded": kernels is not None, "reason": reason}
