"""Layers without parameters that some models need; the engine knows their backward (vjp.py)."""

import torch
from torch import Tensor, nn

from revedge.errors import UsageError


class Twice(nn.Module):
    """The channels, and the same again: ``[N, C, ...] -> [N, 2C, ...]``, both halves of a coupling's stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x beside x."""
        return torch.cat((x, x), 1)


class Voting(nn.Module):
    """Mean over groups of neighbors: ``[N, K * group] -> [N, K]``; ``group`` neurons vote for each class."""

    def __init__(self, group: int) -> None:
        super().__init__()
        if group < 1:
            raise UsageError(f"group={group} is not a number of neurons; use 1 or more")
        self.group = int(group)

    def forward(self, x: Tensor) -> Tensor:
        """Return the share of votes."""
        return x.reshape(x.shape[0], x.shape[1] // self.group, self.group).mean(2)

    def extra_repr(self) -> str:
        """Return what print shows."""
        return f"group={self.group}"
