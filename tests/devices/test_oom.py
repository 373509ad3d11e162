"""Out of memory is recognized by its many texts, and by nothing else."""

import gc
import signal
import weakref

import pytest

from revedge.devices import oom

TEXTS = [
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 98304 bytes. Error code 12 (Cannot allocate memory)",
    "RuntimeError: could not create a primitive",
    "MemoryError",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    'RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1016',
    "RuntimeError: CUDA error: out of memory",
    "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "RuntimeError: FIND was unable to find an engine to execute this computation",
    "RuntimeError: CUDA driver error: operation not supported",
    "NvMapMemAllocInternalTagged: 1075072515 error 12",
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1.00 GiB for an array with shape (1,)",
    "OSError: [Errno 12] Cannot allocate memory",
    "libtorch.so: failed to map segment from shared object",
    "ImportError: libgfortran.so.5: failed to map segment from shared object: Cannot allocate memory",
    "torch.AcceleratorError: CUDA error: cudaErrorMemoryAllocation",
    "cudaMalloc returned cudaErrorMemoryAllocation",
    "CUDA driver error: out of memory",
    "RuntimeError: CUDA_ERROR_OUT_OF_MEMORY",
    "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB",
    "RuntimeError: HIP error: out of memory",
    "RuntimeError: hipErrorOutOfMemory",
    "fork: Cannot allocate memory",
    "RuntimeError: can't start new thread",
    "libgomp: Thread creation failed: Resource temporarily unavailable",
    "RuntimeError: cusolver error: CUSOLVER_STATUS_ALLOC_FAILED",
]
OTHERS = [
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x3 and 2x2)",
    "RuntimeError: CUDA error: device-side assert triggered",
    "RuntimeError: CUDA error: invalid argument",
    "OSError: libfoo.so: cannot open shared object file: No such file or directory",
    "RuntimeError: HIP error: invalid device function",
    "IndexError: index 3 is out of bounds",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_too_little_memory(text: str) -> None:
    """Each text seen in the wild is recognized."""
    assert oom.classify(text)


@pytest.mark.parametrize("text", OTHERS)
def test_other_errors_are_not_taken_for_it(text: str) -> None:
    """Errors of shape, index and device are not."""
    assert not oom.classify(text)


def test_what_a_signal_means() -> None:
    """SIGKILL is of memory when the kernel counted one; a crash when close to the fence or the log says so."""
    kinds = {
        (signal.SIGKILL, "", 0, True): False,
        (signal.SIGKILL, "", 1, False): True,
        (signal.SIGSEGV, "", 0, True): True,
        (signal.SIGSEGV, "", 0, False): False,
        (signal.SIGABRT, "what():  std::bad_alloc", 0, False): True,
        (signal.SIGTERM, "std::bad_alloc", 1, True): False,
    }
    for (number, tail, kills, near), expected in kinds.items():
        assert oom.died_of_memory(number, tail, kills, near_budget=near) is expected


class _Big:
    """Something whose freeing can be seen."""


def test_release_frees_what_the_frames_hold() -> None:
    """Objects that only the failed frames hold are gone after release, also those of a chained error."""
    seen: list[weakref.ref[_Big]] = []

    def fail() -> None:
        big = _Big()
        seen.append(weakref.ref(big))
        try:
            inner()
        except ValueError as error:
            raise MemoryError("no") from error

    def inner() -> None:
        big = _Big()
        seen.append(weakref.ref(big))
        raise ValueError("first")

    kept = None
    try:
        fail()
    except MemoryError as error:
        kept = error
        oom.release(error)
    gc.collect()
    assert [ref() for ref in seen] == [None, None]
    assert kept is not None
