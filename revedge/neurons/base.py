"""The module that all integrate-and-fire neurons share."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from revedge.errors import UsageError
from revedge.kernels import NeuronParams, neuron_backward, neuron_forward
from revedge.neurons import functional
from revedge.neurons.first_order import first_derivative_only
from revedge.neurons.state import StateSpec, StepMode, check_step_mode
from revedge.neurons.surrogate import Surrogate


class _Sequence(torch.autograd.Function):
    """All steps at once; keeps the input (and a given first membrane) and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v0: Tensor | None, _leak: Tensor | None, p: NeuronParams
    ) -> tuple[Tensor, Tensor]:
        # The leak's value is in p; the tensor is here to be given its gradient.
        ctx.set_materialize_grads(False)
        x = x.contiguous()
        v0 = None if v0 is None else v0.contiguous()
        ctx.save_for_backward(x, v0)
        ctx.p = p
        return neuron_forward(x, v0, p)

    @staticmethod
    @first_derivative_only("a neuron over a sequence", "use step_mode='s', or store_v_seq=True")
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        g_s, g_v = grads
        x, v0 = ctx.saved_tensors
        g = torch.zeros_like(x) if g_s is None else g_s
        g_v = None if g_v is None else g_v.contiguous()
        g_x, g_v0, g_k = neuron_backward(x, v0, g, g_v, ctx.p)
        g_leak = None if g_k is None else g_k.sum(dtype=torch.float64).to(g_k.dtype)
        return g_x, g_v0 if ctx.needs_input_grad[1] else None, g_leak, None


class BaseNode(nn.Module, ABC):
    """An integrate-and-fire neuron; the vocabulary is SpikingJelly's.

    The hidden state ``v`` carries over from call to call until :func:`reset_net`.

    Args:
        v_threshold: the membrane at which it fires.
        v_reset: where a spike sets the membrane to; None subtracts the threshold (soft reset).
        detach_reset: leave the reset out of the gradient.
        surrogate: a :class:`Surrogate` or its name.
        step_mode: "m", forward takes [T, B, ...]; "s", forward takes one step [B, ...].
        store_v_seq: keep the membrane of every step in ``v_seq`` [T, B, ...]. Costs that memory
            and the speed of the kernels; for looking, not for training.

    Memory in "m" mode: the input is kept for the backward pass, nothing else.
    """

    v: Tensor | None

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: str | Surrogate = "atan",
        step_mode: str = "m",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__()
        self.v_threshold = float(v_threshold)
        self.v_reset = None if v_reset is None else float(v_reset)
        self.detach_reset = bool(detach_reset)
        self.surrogate = Surrogate.of(surrogate)
        self.step_mode: StepMode = check_step_mode(step_mode)
        self.store_v_seq = bool(store_v_seq)
        self.v = None
        self.v_seq: Tensor | None = None

    @abstractmethod
    def params(self) -> NeuronParams:
        """Return the neuron as plain numbers, as they are now."""

    def leak(self) -> Tensor | None:
        """Return the learnable leak k = 1/tau, differentiable, or None when it is fixed."""
        return None

    def _params(self, **charge: float) -> NeuronParams:
        return NeuronParams(
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate.name,
            alpha=self.surrogate.sharpness,
            **charge,
        )

    def charge(self, x: Tensor, v: Tensor) -> Tensor:
        """Return the membrane before firing h [B, ...], differentiable."""
        p = self.params()
        return functional.charge(x, v, p.decay, p.gain, p.bias + 0.0)

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return (spikes, membrane) after one step of input x [B, ...] from membrane v [B, ...].

        Explicit state, plain differentiable PyTorch: the form that streaming and export use.
        """
        return functional.fire_and_reset(
            self.charge(x, v), self.v_threshold, self.v_reset, self.detach_reset, self.surrogate
        )

    def initial_state(self, shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
        """Return the membrane [B, ...] of ``shape`` before the first step, on ``like``'s device."""
        return like.new_full(shape, self.params().v_initial)

    def state_spec(self, shape: tuple[int, ...]) -> list[StateSpec]:
        """Return the state of a neuron whose input has ``shape``, without the batch."""
        return [StateSpec("v", tuple(shape), 0.0 if self.v_reset is None else self.v_reset)]

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes: [T, B, ...] of a sequence in "m" mode, [B, ...] of a step in "s" mode.

        Raises:
            UsageError: the state is of another shape.
        """
        shape = x.shape[1:] if self.step_mode == "m" else x.shape
        if self.v is not None and self.v.shape != shape:
            raise UsageError(
                f"the neuron's state has shape {tuple(self.v.shape)}, the input needs "
                f"{tuple(shape)}; call reset_net between sequences of different shape"
            )
        s: Tensor
        if self.step_mode == "s":
            v = self.initial_state(shape, x) if self.v is None else self.v
            s, self.v = self.step(x, v)
            return s
        if self.store_v_seq:
            return self._stored_sequence(x)
        s, self.v = _Sequence.apply(x, self.v, self.leak(), self.params())  # type: ignore[no-untyped-call]
        return s

    def _stored_sequence(self, x: Tensor) -> Tensor:
        v = self.initial_state(x.shape[1:], x) if self.v is None else self.v
        spikes, membranes = [], []
        for x_t in x:
            s, v = self.step(x_t, v)
            spikes.append(s)
            membranes.append(v)
        self.v, self.v_seq = v, torch.stack(membranes)
        return torch.stack(spikes)

    def extra_repr(self) -> str:
        """Return what print shows."""
        return (
            f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
            f"detach_reset={self.detach_reset}, surrogate={self.surrogate.name}"
            f"({self.surrogate.sharpness:g}), step_mode={self.step_mode!r}"
        )
