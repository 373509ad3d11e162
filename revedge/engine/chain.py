"""Runs in turn as ONE autograd function: the tensors between them belong to it, so it works in place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from revedge.engine.feed import Feed
from revedge.engine.output import Output
from revedge.engine.run import Given, Run
from revedge.engine.vjp import Gradients, Update


@dataclass(slots=True)
class _Link:
    """What stays of one run: its tape, and what its backward needs of its input and output that is the chain's own."""

    tape: Any
    x: Tensor | None
    out: Tensor | None


class Chain:
    """``runs`` in turn; implements `revedge.engine.run.Carried`.

    Memory: between two runs there is one tensor, and one gradient in the backward pass. Autograd, given the same runs
    one by one, would hold a second gradient and could not let the stream be rebuilt in place.

    The first run's input and the last one's output are in the caller's hands, too: `carry` keeps them, and notices if
    they have been written over.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)

    @property
    def keeps_input(self) -> bool:
        """See `Carried`."""
        return self.runs[0].keeps_input

    @property
    def keeps_output(self) -> bool:
        """See `Carried`."""
        return self.runs[-1].keeps_output

    @property
    def update(self) -> Update | None:
        """What updates a parameter in the backward pass: one for all runs."""
        return self.runs[0].update

    @property
    def chunk_bytes(self) -> int | None:
        """That of all runs."""
        return self.runs[0].chunk_bytes

    def modules(self) -> Iterator[nn.Module]:
        """See `Carried`."""
        return (module for run in self.runs for module in run.modules())

    def parameters(self) -> list[Tensor]:
        """Parameters of all runs that want a gradient, each once."""
        found = {p: None for run in self.runs for p in run.parameters() if p.requires_grad}
        return list(found)

    def _rebuilds(self, run: Run) -> bool:
        """Whether the input of ``run`` is computed again by the run before it instead of kept.

        Done where memory comes first (slabs), between two feeds; a third in turn would need the second's input.
        """
        if not (isinstance(run, Feed) and run.slab_bytes is not None):
            return False
        index = self.runs.index(run)
        before = self.runs[index - 1] if index else None
        return (
            isinstance(before, Feed)
            and before.can_rebuild()
            and len(run.branch_list()) == 1
            and run.strategy in ("keep-spikes", "reverse")
        )

    def run_forward(self, x: Given, *, keep: bool) -> tuple[Tensor, list[_Link]]:
        """See `Carried`."""
        links: list[_Link] = []
        stream, free = x.take(), x.free
        for index, run in enumerate(self.runs):
            inner = keep and index > 0 and run.keeps_input and not self._rebuilds(run)
            kept_x = stream if inner else None
            given = Given(stream, free=free and kept_x is None)
            del stream
            stream, tape = run.run_forward(given, keep=keep)
            kept_out = stream if keep and run.keeps_output and index < len(self.runs) - 1 else None
            free = kept_out is None
            if keep:
                links.append(_Link(tape, kept_x, kept_out))
        return stream, links

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
        links: list[_Link] = tape
        last = len(self.runs) - 1
        for index in range(last, -1, -1):
            link, run = links.pop(), self.runs[index]
            kept_x: Tensor | Output | None = link.x if index else x
            if link.x is not None and index and links[-1].out is None and isinstance(run, Feed):
                kept_x = Output.of(link.x, free=True)
            if self._rebuilds(run):
                before = self.runs[index - 1]
                assert isinstance(before, Feed)
                kept_x = before.again(links[-1].x if index > 1 else x, links[-1].tape)
            kept_out = None if link.out is None else Given(link.out, free=True)
            kept_out, link.out = (out if index == last else kept_out), None
            g_x = run.run_backward(
                kept_x, kept_out, link.tape, g, gradients, need_input=need_input or index > 0
            )
            if g_x is None:
                return None
            g = Given(g_x, free=True)
            del g_x
        return g.take() if need_input else None
