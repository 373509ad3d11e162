"""The one place that chooses between C and the PyTorch reference.

Every operator is ``torch.ops.revedge.<name>``, so that tracing on the meta device sees it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from revedge.kernels._native import LIBRARY

# Kept alive: the operators live as long as this object.
_OPERATORS = torch.library.Library("revedge", "DEF")

_Kernel = Callable[..., Any]


def repeats(x: Tensor) -> bool:
    """Whether ``x`` [T, ...] is one contiguous step, expanded over time."""
    return x.dim() > 1 and x.shape[0] > 1 and x.stride(0) == 0 and x[0].is_contiguous()


def _fits_native(argument: object, dtypes: tuple[torch.dtype, ...], *, repeated: bool) -> bool:
    if not isinstance(argument, Tensor):
        return True
    if argument.dtype not in dtypes or argument.device.type != "cpu":
        return False
    return argument.is_contiguous() or (repeated and repeats(argument))


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
        native: the same in C; called with contiguous CPU tensors of ``dtypes`` only.
        meta: shapes only.
        dtypes: of the tensors that the C code takes.
        repeated_input: the C code takes a first argument that `repeats`.
    """
    name = schema.split("(")[0]

    def on_cpu(*args: Any) -> Any:
        if LIBRARY is not None and all(
            _fits_native(argument, dtypes, repeated=repeated_input and index == 0)
            for index, argument in enumerate(args)
        ):
            return native(*args)
        return reference(*args)

    _OPERATORS.define(schema)
    _OPERATORS.impl(name, on_cpu, "CPU")
    _OPERATORS.impl(name, reference, "CUDA")
    _OPERATORS.impl(name, meta, "Meta")
    return getattr(torch.ops.revedge, name)
