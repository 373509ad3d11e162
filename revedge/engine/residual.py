"""Residual: a chain of blocks ``x <- x + branch(x)``, unchanged nets such as MS-ResNet and Spikingformer.

A branch that begins with a neuron sees x only through spikes. So its first spikes, at one bit each, are enough to
compute the branch again, and ``x = x' - branch`` follows exactly because stream and branch output lie on a grid.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from revedge import kernels
from revedge.engine.output import Output
from revedge.engine.replay import BranchTape, branch_forward, join
from revedge.engine.replay_of import replay_of
from revedge.engine.run import Checksums, Given, Run
from revedge.engine.unit import GRID_BITS, Branch, to_grid
from revedge.engine.vjp import Gradients
from revedge.errors import UsageError


@dataclass(slots=True)
class _Tape:
    blocks: list[BranchTape] = field(default_factory=list)
    sums: Checksums = field(default_factory=lambda: Checksums("none"))


class Residual(Run):
    """``x <- x + branch(x)`` for each branch in turn; input and output ``[T, B, ...]`` of one shape.

    Memory between forward and backward: the run's output, plus per block what `revedge.engine.strategy` says: under
    ``reverse`` 1/32 of one stream tensor.

    Args:
        branches: each must end in a trailing norm, so that its output lies on the grid.
        strategy: see `revedge.engine.strategy`.
        check: "none" or "checksum".
        on_grid: the input lies on the grid already (a `Feed` with a trailing norm gave it out); else it is rounded.

    Raises:
        UsageError: a branch without trailing norm.
    """

    keeps_output = True

    def __init__(
        self,
        branches: list[Branch],
        *,
        strategy: str = "reverse",
        check: str = "none",
        on_grid: bool = False,
    ) -> None:
        super().__init__(strategy, check)
        if not branches or not all(branch.on_grid for branch in branches):
            raise UsageError(
                "each branch of a Residual must end in `norm`: only then is x' - branch(x) exact"
            )
        self.branches = nn.ModuleList(branches)
        self.on_grid = on_grid

    def branch_list(self) -> list[Branch]:
        """Return the branches with their type."""
        return [branch for branch in self.branches if isinstance(branch, Branch)]

    def run_forward(self, x: Given, *, keep: bool) -> tuple[Tensor, _Tape]:
        """See `Carried`."""
        tape = _Tape(sums=Checksums(self.check if keep else "none"))
        stream = x.take_writable() if self.on_grid else kernels.grid_round(x.take(), GRID_BITS)
        for branch in self.branch_list():
            tape.sums.take(stream)
            given = Given(stream, free=False)
            saving = self.saving(keep=keep)
            y, branch_tape = branch_forward(branch, given, saving, "residual")
            # A stored block input must not be overwritten by the next one.
            base = stream.clone() if branch_tape.keeps_input else stream
            stream = join(branch, base, y, branch_tape, saving)
            tape.blocks.append(branch_tape)
            del y  # before the next block begins
        return stream, tape

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
        del x
        assert out is not None
        stream, g_stream = out.take_writable(), g.take_writable()
        for index in reversed(range(len(self.branches))):
            branch = self.branch_list()[index]
            replay = replay_of(branch, tape.blocks.pop(), None, stream, self)
            kept = replay.kept_input()
            replay.undo(stream if kept is None else None, Given(g_stream, free=False), gradients)
            if kept is None:
                tape.sums.compare(stream, f"residual block {index}")
            else:
                stream = kept
            replay.x = stream
            replay.add_to(g_stream, gradients, need_input=need_input or index > 0)
            del replay  # before the next block begins
        return g_stream if need_input else None

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See `Run`."""
        new: list[Tensor] = []
        x = x if self.on_grid else to_grid(x, GRID_BITS)
        for branch in self.branch_list():
            y, states_of_branch = branch.step(x, states[len(new) :])
            x = x + y
            new += states_of_branch
        return x, new
