"""Whether there is the GPU that was asked for; imports no torch."""

from revedge.devices.probe import ask_torch, package_version
from revedge.errors import DeviceError


def require_cuda(asked: str) -> None:
    """Refuse CUDA where torch cannot use it: at once by torch's name, else by asking it in a child (seconds).

    Args:
        asked: how it was asked for, as the user wrote it.

    Raises:
        DeviceError: there is no CUDA.
    """
    version = package_version("torch") or ""
    gpus, why = None, f"torch {version} is built for the CPU"
    if not version.endswith("+cpu"):
        gpus, why = ask_torch()
    if not gpus:
        raise DeviceError(
            f"{asked}: {why}; plan and train on the CPU, install a torch with CUDA, or plan for another board with "
            "revedge plan --device BOARD --accelerator cuda"
        )
