"""Forks as deployment needs them: one time step, states in and out, scriptable. See `revedge.engine.fork`."""

from typing import Final

from torch import Tensor, nn

from revedge.export.blocks import BranchStep, UnitStep, cut_points


class ForkStep(nn.Module):
    """``[s +] first(s) + others(s)``, ``s = head(x)``."""

    takes: Final[int]
    cuts: Final[list[int]]
    identity: Final[bool]

    def __init__(
        self, head: UnitStep, first: BranchStep, others: list[BranchStep], identity: bool
    ) -> None:
        super().__init__()
        self.head = head
        self.first = first
        self.others = nn.ModuleList(others)
        self.identity = identity
        self.cuts = cut_points([first.takes, *(arm.takes for arm in others)], head.takes)
        self.takes = self.cuts[-1]

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step."""
        s, given = self.head(x, carry[: self.cuts[0]])
        out, new = self.first(s, carry[self.cuts[0] : self.cuts[1]])
        given = given + new
        if self.identity:
            out = s + out
        for i, arm in enumerate(self.others):
            y, new = arm(s, carry[self.cuts[i + 1] : self.cuts[i + 2]])
            out = out + y
            given += new
        return out, given


class ForksStep(nn.Module):
    """Forks in turn."""

    takes: Final[int]
    cuts: Final[list[int]]

    def __init__(self, forks: list[ForkStep]) -> None:
        super().__init__()
        self.forks = nn.ModuleList(forks)
        self.cuts = cut_points([fork.takes for fork in forks])
        self.takes = self.cuts[-1]

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step."""
        given: list[Tensor] = []
        for i, fork in enumerate(self.forks):
            x, new = fork(x, carry[self.cuts[i] : self.cuts[i + 1]])
            given += new
        return x, given
