"""Autocast inside a run: the state of the forward pass is entered again in the backward pass.

Autocast reaches the convolutions and linear layers of a tail and nothing else: streams, membranes and normalization
stay float32, and a tail's output is float32 again.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_state(device_type: str) -> AbstractContextManager[Any]:
    """Return the autocast state of now as a context, to be entered by forward and recompute alike.

    Without autocast's cache: it would hold a lowered copy of every weight of the run until autocast ends.
    """
    if not torch.amp.is_autocast_available(device_type):  # the meta device, in planning
        return nullcontext()
    return torch.autocast(
        device_type,
        dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type),
        cache_enabled=False,
    )


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast, for sums that are exact in float32 and in nothing smaller."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return ``tensors`` in the dtype that autocast computes convolutions in, or as they are without autocast."""
    device_type = tensors[0].device.type
    if not torch.amp.is_autocast_available(device_type):
        return tensors
    if not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(tensor.to(dtype) for tensor in tensors)
