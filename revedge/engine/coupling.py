"""Coupling: reversible blocks ``y1 = x1 + F(x2); y2 = x2 + G(y1)`` (arXiv 2312.07922, section 3).

Halves of the stream are contiguous channel ranges. Streams and branch outputs lie on a grid, so ``x2 = y2 - G(y1)`` and
``x1 = y1 - F(x2)`` give the block's input back bit for bit, and G and F are computed anyway for their gradients.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from revedge import kernels
from revedge.engine.halves import copies, merge, split
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


class Coupling(Run):
    """Reversible blocks over the two channel halves of ``x`` ``[T, B, 2*C, ...]``.

    Memory between forward and backward: the run's output; under ``reverse`` nothing else, whatever the depth.

    Args:
        f: the branches F, one per block; each must end in a trailing norm.
        g: the branches G.
        strategy: see `revedge.engine.strategy`.
        check: "none" or "checksum".
        on_grid: the input lies on the grid already; else it is rounded.

    Raises:
        UsageError: unequal numbers of F and G, or a branch without trailing norm.
    """

    keeps_output = True

    def __init__(
        self,
        f: list[Branch],
        g: list[Branch],
        *,
        strategy: str = "reverse",
        check: str = "none",
        on_grid: bool = False,
    ) -> None:
        super().__init__(strategy, check)
        if not f or len(f) != len(g) or not all(branch.on_grid for branch in [*f, *g]):
            raise UsageError(
                f"a Coupling needs as many F ({len(f)}) as G ({len(g)}), each ending in `norm`: only then is it exact"
            )
        self.f = nn.ModuleList(f)
        self.g = nn.ModuleList(g)
        self.on_grid = on_grid

    def half_blocks(self) -> list[Branch]:
        """F, G, F, G, ...: half block i reads half 1 - i % 2 and is added to half i % 2."""
        pairs = zip(self.f, self.g, strict=True)
        return [branch for pair in pairs for branch in pair if isinstance(branch, Branch)]

    def run_forward(self, x: Given, *, keep: bool) -> tuple[Tensor, _Tape]:
        """See `Carried`."""
        tape = _Tape(sums=Checksums(self.check if keep else "none"))
        # Of their own here: under `store` one may be kept that the other outlives.
        halves = copies(x.take() if self.on_grid else kernels.grid_round(x.take(), GRID_BITS))
        for index, branch in enumerate(self.half_blocks()):
            to, read = index % 2, 1 - index % 2
            tape.sums.take(halves[to])
            given = Given(halves[read], free=False)
            saving = self.saving(keep=keep)
            y, branch_tape = branch_forward(branch, given, saving, "coupling")
            # Under `store` the other branch keeps what it read, so that must not be written.
            base = halves[to].clone() if branch_tape.keeps_input else halves[to]
            halves[to] = join(branch, base, y, branch_tape, saving)
            tape.blocks.append(branch_tape)
            del y  # before the next block begins
        return merge(halves), tape

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
        halves, g_halves = split(out), split(g)
        blocks = self.half_blocks()
        for index in reversed(range(len(blocks))):
            to, read, branch = index % 2, 1 - index % 2, blocks[index]
            x_read, kept = halves[read], tape.blocks.pop()
            replay = replay_of(branch, kept, x_read, x_read, self)
            rebuilds = replay.kept_input() is None
            g_branch = Given(g_halves[to], free=False)
            replay.undo(halves[to] if rebuilds else None, g_branch, gradients)
            if rebuilds:
                tape.sums.compare(halves[to], f"coupling block {index // 2} half {to + 1}")
            replay.add_to(g_halves[read], gradients, need_input=need_input or index > 0)
            del replay  # before the next block begins
        del halves
        return merge(g_halves) if need_input else None

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See `Run`."""
        half = x.shape[1] // 2
        x = x if self.on_grid else to_grid(x, GRID_BITS)
        halves, new = [x[:, :half], x[:, half:]], list[Tensor]()
        for index, branch in enumerate(self.half_blocks()):
            y, states_of_branch = branch.step(halves[1 - index % 2], states[len(new) :])
            halves[index % 2] = halves[index % 2] + y
            new += states_of_branch
        return torch.cat(halves, 1), new
