"""A run: blocks that one autograd function carries, so that memory does not grow with depth."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from revedge.engine.strategy import check_strategy
from revedge.engine.vjp import Gradients
from revedge.errors import ReversibilityError, UsageError

CHECKS = ("none", "checksum")


class Run(nn.Module):
    """Base of `Feed`, `Residual` and `Coupling`.

    Attributes:
        strategy: what is kept between forward and backward, see `revedge.engine.strategy`.
        check: "checksum" compares a 64-bit sum of every rebuilt block input with that of the forward pass.
    """

    def __init__(self, strategy: str = "reverse", check: str = "none") -> None:
        super().__init__()
        self.strategy = check_strategy(strategy)
        self.check = check

    def set_strategy(self, strategy: str, *, check: str | None = None) -> None:
        """Choose what the run keeps; the gradient stays the same to the last bit.

        Raises:
            UsageError: ``strategy`` or ``check`` is not known.
        """
        self.strategy = check_strategy(strategy)
        if check is not None:
            if check not in CHECKS:
                raise UsageError(f"check {check!r} is not known; choose one of {', '.join(CHECKS)}")
            self.check = check

    def forward(self, x: Tensor) -> Tensor:
        """Return the run's output for ``x`` ``[T, B, ...]``."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if torch.is_grad_enabled() and (x.requires_grad or parameters):
            out: Tensor = _RunFunction.apply(self, x, *parameters)  # type: ignore[no-untyped-call]
            return out
        with torch.no_grad():
            return self.run_forward(x.contiguous(), None)[0]

    @abstractmethod
    def run_forward(self, x: Tensor, strategy: str | None) -> tuple[Tensor, Any]:
        """Return output and tape; ``strategy`` None keeps no tape. ``x`` must not be written."""

    @abstractmethod
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
        """Return the gradient of ``x`` and fill ``gradients``; ``g`` is not written.

        ``x`` is None unless `keeps_input`.
        """

    @property
    def keeps_input(self) -> bool:
        """Whether the backward needs the run's input itself."""
        return False

    @abstractmethod
    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step with explicit states, in plain PyTorch; takes its states from the front of ``states``."""


class _RunFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, x: Tensor, *parameters: Tensor) -> Tensor:
        out, ctx.tape = run.run_forward(x.detach().contiguous(), run.strategy)
        ctx.run, ctx.parameters = run, parameters
        # `out` may only be kept through autograd: as an attribute it would close a reference cycle.
        ctx.save_for_backward(x if run.keeps_input else None, out)
        return out

    @staticmethod
    def backward(ctx: Any, *g_outs: Tensor) -> Any:
        if ctx.tape is None:
            raise ReversibilityError(
                "this run has been through backward already and its tape is used up; "
                "run the forward pass again (retain_graph does not keep it)"
            )
        (g,) = g_outs
        x, out = ctx.saved_tensors
        tape, ctx.tape = ctx.tape, None
        gradients: Gradients = {}
        with torch.no_grad():
            g_x = ctx.run.run_backward(
                None if x is None else x.contiguous(), out, tape, g.contiguous(), gradients,
                need_input=ctx.needs_input_grad[1],
            )  # fmt: skip
        return None, g_x, *(gradients.get(p) for p in ctx.parameters)


class Checksums:
    """64-bit sums of block inputs: taken in forward, compared in backward, last block first."""

    def __init__(self, check: str) -> None:
        self.on = check == "checksum"
        self.sums: list[int] = []

    def take(self, x: Tensor) -> None:
        """Remember the sum of ``x``."""
        if self.on:
            self.sums.append(_sum_of_bits(x))

    def compare(self, x: Tensor, block: str) -> None:
        """Compare the sum of the rebuilt ``x`` with the one taken last.

        Raises:
            ReversibilityError: they differ.
        """
        if not self.on:
            return
        expected, found = self.sums.pop(), _sum_of_bits(x)
        if expected != found:
            raise ReversibilityError(
                f"the input of {block} was rebuilt with other bits than it had "
                f"(checksum {found} instead of {expected}); "
                "the forward pass was not repeated exactly: keep threads, memory layout and weights fixed between "
                "forward and backward, or use the strategy keep-conv or store"
            )


def _sum_of_bits(x: Tensor) -> int:
    return int(x.detach().contiguous().view(torch.int32).sum(dtype=torch.int64))
