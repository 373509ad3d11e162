"""Units, branches and runs as deployment needs them: one time step, states in and out, scriptable.

Each mirrors its namesake in `revedge.engine` (Unit, Branch, Feed, Residual, Coupling). ``carry`` lists hold what the
cells of a part take, in order of execution; what they give comes back in the same order.
"""

from typing import Final

import torch
from torch import Tensor, nn

from revedge.export.cells import Cell, NoCell, ReversibleCell, StreamCell


def cut_points(takes: list[int], begin: int = 0) -> list[int]:
    """Return where the share of each part begins in a list that holds what they take in turn, and where it ends.

    >>> cut_points([1, 0, 2])
    [0, 1, 1, 3]
    """
    cuts = [begin]
    for count in takes:
        cuts.append(cuts[-1] + count)
    return cuts


class Affine(nn.Module):
    """Batch normalization that no operator directly precedes: ``x * scale + shift`` per channel of ``[B, C, ...]``."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """Scale, then shift, each rounded once, as the kernels do."""
        shape = [1, -1] + [1] * (x.dim() - 2)
        return x * self.scale.reshape(shape) + self.shift.reshape(shape)


class Grid(nn.Module):
    """Round to multiples of ``2**-bits``, half to even: exactly where training rounds."""

    up: Final[float]
    down: Final[float]

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.up = float(2**bits)
        self.down = float(2.0**-bits)

    def forward(self, x: Tensor) -> Tensor:
        """Multiplying by powers of two is exact, so only the rounding rounds."""
        return torch.round(x * self.up) * self.down


class SpaceMean(nn.Module):
    """Mean over height and width: ``[B, C, H, W] -> [B, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the two last axes."""
        return x.mean((-2, -1))


class Attend(nn.Module):
    """Attention without softmax: q, k, v ``[B, 3C, H, W] -> [B, C, H, W]``, ``(q k^T) v * scale`` per head.

    All sizes but B are fixed, so that a file's shapes are known.
    """

    scale: Final[float]
    split: Final[list[int]]
    join: Final[list[int]]

    def __init__(self, heads: int, scale: float, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape[0] // 3, shape[1], shape[2]
        self.scale = scale
        self.split = [3, heads, channels // heads, height * width]
        self.join = [channels, height, width]

    def forward(self, x: Tensor) -> Tensor:
        """On spikes all sums are integers, so their order changes no bit."""
        parts = x.reshape([x.size(0)] + self.split)
        q, k, v = parts[:, 0], parts[:, 1], parts[:, 2]
        out: Tensor = torch.matmul(torch.matmul(v, k.transpose(-1, -2)), q) * self.scale
        return out.reshape([x.size(0)] + self.join)


class Votes(nn.Module):
    """Mean over groups of neighbors: ``[B, K * group] -> [B, K]``."""

    group: Final[int]

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Return the share of votes."""
        votes: Tensor = x.unflatten(1, [-1, self.group])
        return votes.mean(2)


class Doubled(nn.Module):
    """The channels, and the same channels again."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x beside x."""
        return torch.cat([x, x], 1)


class UnitStep(nn.Module):
    """``tail(cell(head(x)))``: head is normalization or nothing, tail is pool and operator."""

    takes: Final[int]

    def __init__(
        self, head: nn.Module, cell: Cell | ReversibleCell | NoCell | StreamCell, tail: nn.Module
    ) -> None:
        super().__init__()
        self.head = head
        self.cell = cell
        self.tail = tail
        self.takes = cell.takes

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step."""
        x, given = self.cell(self.head(x), carry)
        return self.tail(x), given


class BranchStep(nn.Module):
    """Units in turn, then ``close``: what is left of the trailing normalization, pool, grid; or nothing."""

    takes: Final[int]
    cuts: Final[list[int]]

    def __init__(self, units: list[UnitStep], close: nn.Module) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.close = close
        self.cuts = cut_points([unit.takes for unit in units])
        self.takes = self.cuts[-1]

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step."""
        given: list[Tensor] = []
        for i, unit in enumerate(self.units):
            x, new = unit(x, carry[self.cuts[i] : self.cuts[i + 1]])
            given += new
        return self.close(x), given


class FeedStep(nn.Module):
    """The sum of branches."""

    takes: Final[int]
    cuts: Final[list[int]]

    def __init__(self, first: BranchStep, others: list[BranchStep]) -> None:
        super().__init__()
        self.first = first
        self.others = nn.ModuleList(others)
        self.cuts = cut_points([branch.takes for branch in others], first.takes)
        self.takes = self.cuts[-1]

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step."""
        out, given = self.first(x, carry[: self.cuts[0]])
        for i, branch in enumerate(self.others):
            y, new = branch(x, carry[self.cuts[i] : self.cuts[i + 1]])
            out = out + y
            given += new
        return out, given


class ResidualStep(nn.Module):
    """``x <- x + branch(x)``, branch by branch."""

    takes: Final[int]
    cuts: Final[list[int]]

    def __init__(self, entry: nn.Module, branches: list[BranchStep]) -> None:
        super().__init__()
        self.entry = entry
        self.branches = nn.ModuleList(branches)
        self.cuts = cut_points([branch.takes for branch in branches])
        self.takes = self.cuts[-1]

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step."""
        x = self.entry(x)
        given: list[Tensor] = []
        for i, branch in enumerate(self.branches):
            y, new = branch(x, carry[self.cuts[i] : self.cuts[i + 1]])
            x = x + y
            given += new
        return x, given


class CouplingStep(nn.Module):
    """``x1 <- x1 + F(x2)``, ``x2 <- x2 + G(x1)`` on channel halves; ``branches`` are F, G, F, G, ... ."""

    takes: Final[int]
    cuts: Final[list[int]]
    width: Final[int]

    def __init__(self, entry: nn.Module, branches: list[BranchStep], width: int) -> None:
        super().__init__()
        self.entry = entry
        self.branches = nn.ModuleList(branches)
        self.width = width
        self.cuts = cut_points([branch.takes for branch in branches])
        self.takes = self.cuts[-1]

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step; after each half block the two halves trade places, so that one rule serves F and G."""
        x = self.entry(x)
        written = x.narrow(1, 0, self.width)
        read = x.narrow(1, self.width, self.width)
        given: list[Tensor] = []
        for i, branch in enumerate(self.branches):
            y, new = branch(read, carry[self.cuts[i] : self.cuts[i + 1]])
            written, read = read, written + y
            given += new
        return torch.cat([written, read], 1), given
