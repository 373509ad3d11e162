"""Feed: the sum of branches without an identity path. Stems, transitions between stages, trunks of VGG nets, heads."""

from typing import Any

from torch import Tensor, nn

from revedge.engine.replay import BranchTape, Replay, branch_forward, join
from revedge.engine.run import Run
from revedge.engine.unit import Branch
from revedge.engine.vjp import Gradients
from revedge.errors import UsageError


class Feed(Run):
    """``out = branch_1(x) + branch_2(x) + ...``.

    Memory between forward and backward: ``x`` (a reference), plus what `revedge.engine.strategy` says for the units
    after the first. The gradient of ``x`` is summed over the branches in order.

    Raises:
        UsageError: no branch, or several of which one does not end on the grid.
    """

    def __init__(
        self, branches: list[Branch], *, strategy: str = "reverse", check: str = "none"
    ) -> None:
        super().__init__(strategy, check)
        if not branches or (len(branches) > 1 and not all(branch.on_grid for branch in branches)):
            raise UsageError(
                "a Feed needs a branch, and if it has several each must end in `norm`, or sums are inexact"
            )
        self.branches = nn.ModuleList(branches)

    @property
    def keeps_input(self) -> bool:
        """A feed cannot rebuild its input."""
        return True

    def branch_list(self) -> list[Branch]:
        """Return the branches with their type."""
        return [branch for branch in self.branches if isinstance(branch, Branch)]

    def run_forward(self, x: Tensor, strategy: str | None) -> tuple[Tensor, list[BranchTape]]:
        """See `Run`."""
        out: Tensor | None = None
        tapes = []
        for branch in self.branch_list():
            y, tape = branch_forward(branch, x, strategy, "feed")
            out = join(branch, out, y, tape.stats)
            tapes.append(tape)
        assert out is not None
        return out, tapes

    def run_backward(
        self,
        x: Tensor | None,
        out: Tensor,
        tape: Any,
        g: Tensor,
        gradients: Gradients,
        *,
        need_input: bool,
    ) -> Tensor | None:
        """See `Run`."""
        del out
        g_x: Tensor | None = None
        for branch, branch_tape in zip(self.branch_list(), tape, strict=True):
            part = Replay(branch, branch_tape, x).backward(
                g.clone(), gradients, need_input=need_input
            )
            g_x = part if g_x is None or part is None else g_x.add_(part)
        return g_x

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See `Run`."""
        out: Tensor | None = None
        new: list[Tensor] = []
        for branch in self.branch_list():
            y, states_of_branch = branch.step(x, states[len(new) :])
            out = y if out is None else out + y
            new += states_of_branch
        assert out is not None
        return out, new
