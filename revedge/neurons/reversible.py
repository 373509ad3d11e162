"""The reversible neuron as a module."""

from typing import Any

import torch
from torch import Tensor, nn

from revedge.errors import UsageError
from revedge.kernels import ReversibleParams
from revedge.neurons import functional
from revedge.neurons.first_order import first_derivative_only
from revedge.neurons.reversible_backward import (
    Backward,
    check_backward,
    sequence,
    sequence_backward,
    sequence_backward_,
)
from revedge.neurons.state import StateSpec, StepMode, check_step_mode
from revedge.neurons.surrogate import Surrogate


class _ReversibleSequence(torch.autograd.Function):
    """All steps from a zero state; keeps its output Y, not its input, and M if told so."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rp: ReversibleParams, dim: int, backward: Backward
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        y, v, m = sequence(x.contiguous(), rp, dim, backward)
        ctx.save_for_backward(y, *([] if m is None else [m]))
        ctx.settings = (rp, dim, backward)
        ctx.mark_non_differentiable(v)
        return y, v

    @staticmethod
    @first_derivative_only("the reversible neuron over a sequence", "use step_mode='s'")
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        g_y = grads[0]
        if g_y is None:
            return None, None, None, None
        y, *m = ctx.saved_tensors
        return sequence_backward(y, m[0] if m else None, g_y, *ctx.settings), None, None, None


class ReversibleNode(nn.Module):
    """The reversible neuron of arXiv 2308.08649: its input can be rebuilt from its output.

    The output is real-valued, ``spike + beta * input of another group``, [T, B, ...] like the
    input. Kept for the backward pass: the output, which the next layer keeps anyway; the input is
    rebuilt, bit for bit if it lies on the grid and beta is a power of two.

    Args:
        groups: 2 or more; divides dimension ``dim``.
        tau: time constant in steps, >= 1.
        alpha: share of the old membrane added after the reset.
        beta: weight of the input passed through, not 0.
        v_threshold, v_reset, detach_reset, surrogate: as in BaseNode; the reset is hard.
        dim: the dimension that the groups split, neither time nor (in "s" mode) the first.
        backward: "direct" (the default: one kernel from Y), or for comparison "conventional" (inverse, forward again,
            autograd; slower) or "stored" (keeps one tensor more); see `revedge.neurons.reversible_backward`.
        step_mode: "m" or "s", as in BaseNode.

    In "m" mode a state carried over from an earlier call runs step by step through autograd, which
    keeps more; call ``reset_net`` between sequences.
    """

    v: Tensor | None

    def __init__(
        self,
        groups: int = 2,
        tau: float = 2.0,
        alpha: float = 0.1,
        beta: float = 1.0,
        v_threshold: float = 1.0,
        v_reset: float = 0.0,
        detach_reset: bool = False,
        surrogate: str | Surrogate = "atan",
        dim: int = -1,
        step_mode: str = "m",
        backward: str = "direct",
    ) -> None:
        super().__init__()
        if groups < 2:
            raise UsageError(f"groups {groups} is below 2; use 2, or another divisor of the width")
        if beta == 0 or not tau >= 1.0:
            raise UsageError(f"beta {beta} must not be 0 and tau {tau} not below 1; use 1 and 2")
        self.groups, self.dim = int(groups), int(dim)
        self.tau, self.alpha, self.beta = float(tau), float(alpha), float(beta)
        self.v_threshold, self.v_reset = float(v_threshold), float(v_reset)
        self.detach_reset = bool(detach_reset)
        self.surrogate = Surrogate.of(surrogate)
        self.step_mode: StepMode = check_step_mode(step_mode)
        self.backward: Backward = check_backward(backward)
        self.v = None

    def params(self) -> ReversibleParams:
        """Return the neuron as plain numbers."""
        return ReversibleParams(
            groups=self.groups,
            tau=self.tau,
            alpha=self.alpha,
            beta=self.beta,
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate.name,
            surrogate_alpha=self.surrogate.sharpness,
        )

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return (Y, V') after one step of input x [B, ...] from state v [B, ...]."""
        # ``dim`` counts time; one step has none.
        dim = self.dim if self.dim < 0 else self.dim - 1
        return functional.reversible_step(x, v, self.params(), dim)

    def sequence(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (Y, what `sequence_backward_` needs besides it) of ``x`` [T, B, ...] from rest.

        Not differentiable: for callers with an autograd function of their own.
        """
        y, _, m = sequence(x, self.params(), self.dim, self.backward)
        return y, m

    def sequence_backward_(self, y: Tensor, m: Tensor | None, g_y: Tensor) -> Tensor:
        """Return the input of `sequence`; overwrite ``g_y``, contiguous, the gradient of Y, with its gradient."""
        return sequence_backward_(y, m, g_y, self.params(), self.dim, self.backward)

    def initial_state(self, shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
        """Return the state [B, ...] before the first step: zero."""
        return like.new_zeros(shape)

    def state_spec(self, shape: tuple[int, ...]) -> list[StateSpec]:
        """Return the state of a neuron whose input has ``shape``, without the batch."""
        return [StateSpec("v", tuple(shape), 0.0)]

    def forward(self, x: Tensor) -> Tensor:
        """Return Y: [T, B, ...] of a sequence in "m" mode, [B, ...] of a step in "s" mode."""
        if self.step_mode == "m" and self.v is None:
            y: Tensor
            y, self.v = _ReversibleSequence.apply(  # type: ignore[no-untyped-call]
                x, self.params(), self.dim, self.backward
            )
            return y
        steps = x if self.step_mode == "m" else x[None]
        v = self.initial_state(steps.shape[1:], x) if self.v is None else self.v
        outputs = []
        for x_t in steps:
            y_t, v = self.step(x_t, v)
            outputs.append(y_t)
        self.v = v
        return torch.stack(outputs) if self.step_mode == "m" else outputs[0]

    def extra_repr(self) -> str:
        """Return what print shows."""
        return (
            f"groups={self.groups}, tau={self.tau}, alpha={self.alpha}, beta={self.beta}, "
            f"dim={self.dim}, surrogate={self.surrogate.name}({self.surrogate.sharpness:g}), "
            f"backward={self.backward}"
        )
