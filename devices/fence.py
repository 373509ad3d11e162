"""Hard limits that make an allocation fail rather than let the process go over its budget.

CPU: `RLIMIT_DATA` limits the writable private memory of the process (`VmData`); it needs no root and no cgroup. An
allocation beyond it fails, which torch reports as an out-of-memory error. CUDA: the caching allocator's own cap on
reserved bytes.
"""

import resource

from revedge.devices.meter import status_bytes
from revedge.errors import DeviceError
from revedge.units import format_bytes


def fence_data(allowed_bytes: int) -> int:
    """Let this process's writable memory grow by `allowed_bytes` from now on, and no further.

    Args:
        allowed_bytes: growth that is still allowed, in bytes. At or below 0: no growth.

    Returns:
        the limit set on VmData, in bytes (the present hard limit if that is lower).

    Raises:
        DeviceError: the system refuses the limit.
    """
    limit = status_bytes().get("VmData", 0) + max(0, allowed_bytes)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"the limit of {format_bytes(limit)} on writable memory was refused by the system ({error}); "
            "train without --budget, or set the limit outside with ulimit -d"
        ) from None
    return limit


def fence_cuda(allowed_bytes: int) -> float:
    """Cap what torch's caching allocator may reserve on the current CUDA device.

    Args:
        allowed_bytes: reserved bytes allowed in total.

    Returns:
        the fraction of the device's memory that was set.

    Raises:
        DeviceError: no CUDA device, or nothing is allowed.
    """
    import torch

    if not torch.cuda.is_available():
        raise DeviceError("device 'cuda' is not there; train with --device cpu")
    if allowed_bytes <= 0:
        raise DeviceError(
            f"nothing of the budget is left for the GPU ({format_bytes(allowed_bytes)}); give a larger --budget"
        )
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    fraction = min(1.0, allowed_bytes / total)
    torch.cuda.set_per_process_memory_fraction(fraction)
    return fraction
