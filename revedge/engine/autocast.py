"""Autocast inside a run: the state of the forward pass is entered again in the backward pass.

Autocast reaches the convolutions and linear layers of a tail and nothing else: streams, membranes and normalization
stay float32, and a tail's output is float32 again.

On the meta device, in planning, torch's autocast does not act. There the CPU's state holds, and the casts that torch
would make are made here, so that a trace sees them; where what torch would do is not known, that is an error.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from revedge.errors import UsageError


def computing_in(dtype: torch.dtype, device_type: str) -> AbstractContextManager[Any]:
    """Return a context in which convolutions and linear layers compute in ``dtype``; of float32, one that does nothing.

    Without autocast's cache: it would hold a lowered copy of every weight until autocast ends.
    """
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(_acting(device_type), dtype=dtype, cache_enabled=False)


def autocast_state(device_type: str) -> AbstractContextManager[Any]:
    """Return the autocast state of now, without its cache, as a context for forward and recompute alike."""
    acting = _acting(device_type)
    if not torch.amp.is_autocast_available(acting):
        return nullcontext()
    return torch.autocast(
        acting,
        dtype=torch.get_autocast_dtype(acting),
        enabled=torch.is_autocast_enabled(acting),
        cache_enabled=False,
    )


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast, for sums that are exact in float32 and in nothing smaller."""
    acting = _acting(device_type)
    if not torch.amp.is_autocast_available(acting):
        return nullcontext()
    return torch.autocast(acting, enabled=False)


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return ``tensors`` in the dtype that autocast computes convolutions in, or as they are without autocast."""
    dtype = _lower_dtype(tensors[0].device.type)
    return tensors if dtype is None else tuple(tensor.to(dtype) for tensor in tensors)


def called(module: nn.Module, x: Tensor) -> Tensor:
    """Return ``module(x)``; on the meta device with the casts that autocast makes elsewhere.

    Raises:
        UsageError: on the meta device under autocast: it is not known what autocast does to this module.
    """
    if x.is_meta and _lower_dtype("meta") is not None and any(True for _ in module.parameters()):
        return _as_autocast_calls(module, x)
    y: Tensor = module(x)
    return y


def convolved(x: Tensor, op: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution ``op``, padded with zeros, with these of its weights."""
    if x.is_meta:
        x, weight, bias = _lowered_call(x, weight, bias)
    assert not isinstance(op.padding, str)
    return functional.conv2d(x, weight, bias, op.stride, op.padding, op.dilation, op.groups)


def transformed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the linear layer with these weights."""
    if x.is_meta:
        x, weight, bias = _lowered_call(x, weight, bias)
    return functional.linear(x, weight, bias)


def _as_autocast_calls(module: nn.Module, x: Tensor) -> Tensor:
    if type(module) is nn.Linear:
        return transformed(x, module.weight, module.bias)
    if (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    ):
        return convolved(x, module, module.weight, module.bias)
    raise UsageError(
        f"the memory of {type(module).__name__} in a precision below float32 is not known, so nothing can be planned; "
        "use --precision float32"
    )


def _lowered_call(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight = lowered(x, weight)
    return x, weight, None if bias is None else lowered(bias)[0]


def _lower_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype that autocast computes in now, None where it is not on."""
    acting = _acting(device_type)
    if not torch.amp.is_autocast_available(acting) or not torch.is_autocast_enabled(acting):
        return None
    return torch.get_autocast_dtype(acting)


def _acting(device_type: str) -> str:
    """Return the device type whose autocast is meant."""
    return "cpu" if device_type == "meta" else device_type
