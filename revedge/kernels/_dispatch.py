"""The one place that chooses between C, Triton and the PyTorch reference.

Every operator is ``torch.ops.revedge.<name>``, so that tracing on the meta device sees it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from revedge.kernels._native import LIBRARY
from revedge.kernels._triton import triton_kernels
from revedge.kernels.params import COMPILED_FLOATS

# Kept alive: the operators live as long as this object.
_OPERATORS = torch.library.Library("revedge", "DEF")

_Kernel = Callable[..., Any]

MOST_ELEMENTS = 2**31 - 2**16  # Triton's offsets are int32, up to one block past the end


def repeats(x: Tensor) -> bool:
    """Whether ``x`` [T, ...] is one contiguous step, expanded over time."""
    return x.dim() > 1 and x.shape[0] > 1 and x.stride(0) == 0 and x[0].is_contiguous()


def _fit(
    args: tuple[object, ...], dtypes: tuple[torch.dtype, ...], device: str, *, repeated: bool
) -> bool:
    """Whether compiled code can read all tensors of ``args``; of the first one, ``repeated``; and knows the neuron."""
    if any(isinstance(a, list) and len(a) > COMPILED_FLOATS for a in args):
        return False
    listed = [each for a in args if isinstance(a, list) for each in a if isinstance(each, Tensor)]
    for index, argument in enumerate([*args, *listed]):
        if not isinstance(argument, Tensor):
            continue
        if argument.dtype not in dtypes or argument.device.type != device:
            return False
        if not (argument.is_contiguous() or (repeated and index == 0 and repeats(argument))):
            return False
    return True


def _fit_one_gpu(args: tuple[object, ...]) -> bool:
    """Whether all tensors are on the same GPU, and small enough for 32-bit offsets; bytes hold bits."""
    tensors = [argument for argument in args if isinstance(argument, Tensor)]
    return all(
        tensor.device == tensors[0].device
        and tensor.numel() * (8 if tensor.dtype == torch.uint8 else 1) <= MOST_ELEMENTS
        for tensor in tensors
    )


def register(
    schema: str,
    *,
    reference: _Kernel,
    native: _Kernel,
    meta: _Kernel,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    repeated_input: bool = False,
) -> Any:
    """Define an operator and return it.

    Args:
        schema: as torch.library has it, without the namespace.
        reference: the definition; runs on any device and dtype.
        native: the same in C; called with contiguous CPU tensors of ``dtypes`` only. The same in
            Triton, for such CUDA tensors, is the function of the operator's name in
            :mod:`revedge.kernels.triton`, if there is one.
        meta: shapes only.
        dtypes: of the tensors that C and Triton take.
        repeated_input: C and Triton take a first argument that `repeats`.
    """
    name = schema.split("(")[0]

    def on_cpu(*args: Any) -> Any:
        if LIBRARY is not None and _fit(args, dtypes, "cpu", repeated=repeated_input):
            return native(*args)
        return reference(*args)

    def on_cuda(*args: Any) -> Any:
        kernel = getattr(triton_kernels(), name, None)
        fit = _fit(args, dtypes, "cuda", repeated=repeated_input) and _fit_one_gpu(args)
        if kernel is None or not fit:
            return reference(*args)
        # Triton launches on the current GPU, wherever its arguments are.
        with torch.cuda.device_of(next(a for a in args if isinstance(a, Tensor))):
            return kernel(*args)

    _OPERATORS.define(schema)
    _OPERATORS.impl(name, on_cpu, "CPU")
    _OPERATORS.impl(name, on_cuda, "CUDA")
    _OPERATORS.impl(name, meta, "Meta")
    return getattr(torch.ops.revedge, name)
