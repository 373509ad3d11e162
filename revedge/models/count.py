"""Multiply-adds of a net, counted as the papers print them."""

from typing import Any

import torch
from torch import nn

from revedge.engine import SpikeAttention
from revedge.models.net import SpikingNet, state_shapes


def macs(net: SpikingNet) -> int:
    """Multiply-adds of one sample's forward pass over all time steps.

    Counted are convolutions, linear layers and both products of attention, ``2 * C * tokens**2``; not counted are
    bias, normalization, neurons and pools. Every operator counts at every time step, the stem of a static net too,
    although it runs once here: so the numbers compare with printed ones ("FLOPs" there).

    Memory and time: none to speak of; no arithmetic is done. The net is not changed.
    """
    total = 0

    def count(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        nonlocal total
        total += macs_of(module, args[0].shape, out.shape)

    kinds = (nn.Conv2d, nn.Linear, SpikeAttention)
    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, kinds)]
    try:
        state_shapes(net)
    finally:
        for hook in hooks:
            hook.remove()
    return total * net.timesteps


def macs_of(module: nn.Module, given: torch.Size, out: torch.Size) -> int:
    """Multiply-adds of one plane: the first axis of both shapes is left out."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        per_value = module.weight[0].numel()  # channels in (of a group) * kernel
        return out[1:].numel() * per_value
    if isinstance(module, nn.Linear):
        return module.in_features * out[1:].numel()
    channels, tokens = given[1] // 3, given[2:].numel()
    return 2 * channels * tokens * tokens
