"""One call of the C library.

Pointers of empty or absent tensors are NULL, which the C side reads as "not given".
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from revedge.kernels._native import LIBRARY

Floats = Sequence[float]  # a neuron as plain numbers: `NeuronParams.as_floats`


def call(name: str, tensors: Sequence[Tensor | None], sizes: Sequence[int], p: Floats) -> int:
    """Call ``revedge_<name>(pointers..., sizes..., floats, threads)``; return 0 or a flag."""
    floats = (ctypes.c_float * len(p))(*p)
    code: int = getattr(LIBRARY, f"revedge_{name}")(
        *map(_pointer, tensors), *map(ctypes.c_int64, sizes), floats, torch.get_num_threads()
    )
    if code < 0:
        raise MemoryError(f"kernel {name} could not allocate its scratch for sizes {list(sizes)}")
    return code


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None and tensor.numel() else None)


def planes(y: Tensor, dims: int) -> tuple[int, int, int]:
    """Return (M, C, S): ``dims`` leading dimensions in one, channels, the rest in one."""
    m = 1
    for size in y.shape[:dims]:
        m *= size
    channels = y.shape[dims]
    return m, channels, y.numel() // max(1, m * channels)
