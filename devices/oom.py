"""Tells an out-of-memory failure from every other one, by its text.

Most are no `torch.OutOfMemoryError`: on the CPU it is a plain RuntimeError, on Jetson-class boards often an internal
assertion. The texts are those seen in the wild.
"""

import gc
import re
import signal
import traceback

_TEXTS = (
    r"OutOfMemoryError",
    r"MemoryError",
    r"can't allocate memory",
    r"DefaultCPUAllocator",
    r"could not (create|execute) a primitive",  # oneDNN without memory for its code
    r"could not create a memory object",
    r"std::bad_alloc",
    r"NVML_SUCCESS == r.{0,20}INTERNAL ASSERT",
    r"(CUDA|HIP) error: out of memory",
    r"CUDA out of memory",
    r"CUDNN_STATUS_(ALLOC_FAILED|NOT_INITIALIZED|INTERNAL_ERROR)",
    r"CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)",  # its handle needs memory too
    r"FIND was unable to find an engine to execute this computation",  # cuDNN: none whose workspace fits
    r"CUDA driver error: operation not supported",  # expandable segments on Tegra
    r"NvMapMemAllocInternalTagged",
    r"Unable to allocate .{1,40} for an array",  # numpy
    r"cannot allocate memory|failed to allocate|could not allocate",
    r"\[Errno 12\]",
    r"failed to map segment from shared object",  # a library that is loaded late
    r"can't start new thread",
    r"libgomp: (Out of memory|Thread creation failed)",  # and then exit code 1
    r"(CUDA|HIP)(_ERROR| driver error:| runtime error:).{0,20}out[ _]of[ _]memory",
    r"cudaErrorMemoryAllocation|hipErrorOutOfMemory",
    r"HIP out of memory",
    r"(CUSOLVER|CUSPARSE|NCCL)\w*ALLOC_FAILED|CUFFT_ALLOC_FAILED",
    r"NvMapReserveOp|NvRmMem\w+ .{0,40}(failed|error)",  # Tegra
)
_PATTERN = re.compile("|".join(_TEXTS), re.IGNORECASE | re.DOTALL)


def classify(text: str) -> bool:
    """Return whether an error text (or the tail of a log) speaks of too little memory."""
    return _PATTERN.search(text) is not None


def describe(error: BaseException) -> str:
    """Return type and first line of an error, at most 300 characters."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}"[:300]


def died_of_memory(
    signal_number: int, log_tail: str, kernel_oom_kills: int, near_budget: bool
) -> bool:
    """Return whether a process that a signal ended was ended by want of memory.

    Args:
        signal_number: the signal that ended it.
        log_tail: the end of its stderr.
        kernel_oom_kills: how many kills for memory the kernel counted while it ran.
        near_budget: whether its memory had come near the budget.
    """
    if signal_number == signal.SIGKILL:
        return kernel_oom_kills > 0
    crash = signal_number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
    return crash and (near_budget or classify(log_tail))


def release(error: BaseException) -> None:
    """Let go of everything that an error's frames still hold; call it before the except block ends.

    The live exception holds the frames, the frames hold the activations: nothing can be freed until they are cleared.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        pending += [current.__cause__, current.__context__]
        current.__traceback__ = None
    gc.collect()
