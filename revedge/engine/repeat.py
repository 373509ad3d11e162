"""Repeat: one image becomes T equal time steps, without T copies in memory."""

from typing import Any

from torch import Tensor

from revedge.engine.output import Output
from revedge.engine.run import Given, Run
from revedge.engine.vjp import Gradients


class Repeat(Run):
    """``[1, B, ...] -> [T, B, ...]``; the gradient is the sum over T. The output is a view of the input.

    Args:
        timesteps: T.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def run_forward(self, x: Given, *, keep: bool) -> tuple[Tensor, None]:
        """See `Carried`."""
        del keep
        image = x.take()
        return image.expand(self.timesteps, *image.shape[1:]), None

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
        del x, out, tape, gradients
        return g.take().sum(0, keepdim=True) if need_input else None

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One step of the repeated image is the image."""
        del states
        return x, []
