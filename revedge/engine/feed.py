"""Feed: the sum of branches without an identity path. Stems, transitions between stages, trunks of VGG nets, heads."""

from typing import Any

from torch import Tensor, nn

from revedge.engine.output import Output
from revedge.engine.replay import BranchTape, Replay, branch_forward, join
from revedge.engine.run import Given, Run
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

    keeps_input = True  # it cannot rebuild its input

    def __init__(
        self, branches: list[Branch], *, strategy: str = "reverse", check: str = "none"
    ) -> None:
        super().__init__(strategy, check)
        if not branches or (len(branches) > 1 and not all(branch.on_grid for branch in branches)):
            raise UsageError(
                "a Feed needs a branch, and if it has several each must end in `norm`, or sums are inexact"
            )
        self.branches = nn.ModuleList(branches)

    def branch_list(self) -> list[Branch]:
        """Return the branches with their type."""
        return [branch for branch in self.branches if isinstance(branch, Branch)]

    def run_forward(self, x: Given, *, keep: bool) -> tuple[Tensor, list[BranchTape]]:
        """See `Carried`."""
        out: Tensor | None = None
        tapes, branches = [], self.branch_list()
        for branch in branches:
            given = x if branch is branches[-1] else x.lend()
            saving = self.saving(keep=keep)
            y, tape = branch_forward(branch, given, saving, "feed")
            out = join(branch, out, y, tape, saving)
            tapes.append(tape)
            del y  # before the next branch begins
        assert out is not None
        return out, tapes

    def can_rebuild(self) -> bool:
        """Whether `again` can give the output without much on the tape."""
        branches = self.branch_list()
        kept = self.strategy in ("keep-spikes", "reverse") and self.slab_bytes is not None
        return kept and len(branches) == 1 and branches[0].pool is None

    def again(self, x: Tensor | Output | None, tape: Any) -> Output:
        """Return the output once more, slab by slab, before the run's backward; costs its last operator."""
        return Replay(self.branch_list()[0], tape[0], x, self.slab_bytes).again()

    def run_backward(
        self,
        x: Tensor | Output | None,
        out: Given | None,
        tape: Any,
        g: Given,
        gradients: Gradients,
        *,
        need_input: bool,
    ) -> Tensor | None:
        """See `Carried`."""
        del out
        branches, g_x = self.branch_list(), None
        for branch in branches:
            g_branch = g if branch is branches[-1] else g.lend()
            if branch is not branches[-1] and isinstance(x, Output) and x.free:
                given: Tensor | Output | None = x.whole()  # for the others, too
            else:
                given = x
            replay = Replay(branch, tape.pop(0), given, self.slab_bytes)
            replay.undo(None, g_branch, gradients)
            part = replay.backward(gradients, need_input=need_input)
            g_x = part if g_x is None or part is None else g_x.add_(part)
            del part, replay
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
