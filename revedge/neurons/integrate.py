"""IF, LIF, parametric LIF, and the LIF whose reset comes a step late."""

import math

import torch
from torch import Tensor, nn

from revedge.errors import UsageError
from revedge.kernels import NeuronParams
from revedge.neurons import functional
from revedge.neurons.base import BaseNode
from revedge.neurons.surrogate import Surrogate, spike


class IFNode(BaseNode):
    """Integrate and fire, without a leak: h = v + x."""

    def params(self) -> NeuronParams:
        """Return the neuron as plain numbers."""
        return self._params(decay=1.0, gain=1.0)


class LIFNode(BaseNode):
    """Leaky integrate and fire; v_rest is ``v_reset``, or 0 with the soft reset.

    h = v + (x - (v - v_rest)) / tau   with ``decay_input``,
    h = v - (v - v_rest) / tau + x     without.

    Args:
        tau: time constant in steps, > 1.
        decay_input: divide the input by tau too, as SpikingJelly does by default.
        v_threshold, v_reset, detach_reset, surrogate, step_mode, store_v_seq: see BaseNode.
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: str | Surrogate = "atan",
        step_mode: str = "m",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, detach_reset, surrogate, step_mode, store_v_seq)
        if not tau > 1.0:
            raise UsageError(f"tau {tau} is not above 1 step; use 2.0, or IFNode for no leak")
        self.tau = float(tau)
        self.decay_input = bool(decay_input)

    def params(self) -> NeuronParams:
        """Return the neuron as plain numbers."""
        k = 1.0 / self.tau
        v_rest = 0.0 if self.v_reset is None else self.v_reset
        return self._params(
            decay=1.0 - k, gain=k if self.decay_input else 1.0, bias=k * v_rest + 0.0
        )

    def extra_repr(self) -> str:
        """Return what print shows."""
        return f"tau={self.tau}, decay_input={self.decay_input}, {super().extra_repr()}"


class ParametricLIFNode(BaseNode):
    """LIF that learns its time constant: 1/tau = sigmoid(w), one ``w`` for the whole layer.

    Args:
        init_tau: time constant to start from, in steps, > 1.
        decay_input: divide the input by tau too.
        v_threshold, v_reset, detach_reset, surrogate, step_mode, store_v_seq: see BaseNode.

    Source: Fang et al., "Incorporating Learnable Membrane Time Constant", ICCV 2021.
    """

    w: nn.Parameter

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: str | Surrogate = "atan",
        step_mode: str = "m",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, detach_reset, surrogate, step_mode, store_v_seq)
        if not init_tau > 1.0:
            raise UsageError(f"init_tau {init_tau} is not above 1 step; use 2.0")
        self.init_tau = float(init_tau)
        self.decay_input = bool(decay_input)
        self.w = nn.Parameter(torch.tensor(-math.log(self.init_tau - 1.0)))

    def leak(self) -> Tensor:
        """Return k = 1/tau = sigmoid(w), differentiable."""
        return self.w.sigmoid()

    def params(self) -> NeuronParams:
        """Return the neuron as plain numbers, as they are now."""
        # A tensor on the meta device, as in planning, has no value: take the first one.
        k = 1.0 / self.init_tau if self.w.is_meta else float(self.leak().detach())
        v_rest = 0.0 if self.v_reset is None else self.v_reset
        return self._params(
            decay=1.0 - k,
            gain=k if self.decay_input else 1.0,
            bias=k * v_rest + 0.0,
            leak_x=1.0 if self.decay_input else 0.0,
            leak_v=-1.0,
            leak_1=v_rest,
        )

    def charge(self, x: Tensor, v: Tensor) -> Tensor:
        """Return the membrane before firing h [B, ...], differentiable in w too."""
        k = self.leak()
        v_rest = 0.0 if self.v_reset is None else self.v_reset
        gain = k if self.decay_input else 1.0
        return functional.charge(x, v, 1.0 - k, gain, k * v_rest + 0.0)

    def extra_repr(self) -> str:
        """Return what print shows."""
        return f"init_tau={self.init_tau}, decay_input={self.decay_input}, {super().extra_repr()}"


class LateResetNode(BaseNode):
    """Leaky integrate and fire with snnTorch's reset by subtraction, a step late and behind the leak.

    h = beta v + x - v_threshold * (v > v_threshold), fires where h > v_threshold, v = h.

    The state is the membrane as it fired. The reset is no part of the gradient. There is no compiled kernel: sequences
    run in plain PyTorch, forward and backward.

    Args:
        beta: what a step leaves of the membrane, in (0, 1].
        v_threshold: above which it fires, and what a spike takes off; >= 0. The attribute is the next float32.
        surrogate, step_mode, store_v_seq: see BaseNode.

    Source: snnTorch 1.0.0, ``Leaky(reset_mechanism="subtract")`` with its default ``reset_delay=True``.
    """

    def __init__(
        self,
        beta: float = 0.9,
        v_threshold: float = 1.0,
        surrogate: str | Surrogate = "atan",
        step_mode: str = "m",
        store_v_seq: bool = False,
    ) -> None:
        if not 0.0 < beta <= 1.0:
            raise UsageError(f"beta {beta} is not in (0, 1]; 1 has no leak")
        if not v_threshold >= 0.0:
            raise UsageError(f"v_threshold {v_threshold} is below 0; use 1.0")
        above = torch.nextafter(torch.tensor(float(v_threshold)), torch.tensor(math.inf))
        super().__init__(float(above), None, True, surrogate, step_mode, store_v_seq)
        self.beta = float(beta)
        self.late = float(v_threshold)

    def params(self) -> NeuronParams:
        """Return the neuron as plain numbers."""
        return self._params(decay=self.beta, gain=1.0, late=self.late)

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `BaseNode`."""
        h = self.charge(x, v)
        h = torch.where(v >= self.v_threshold, h - self.late, h)
        return spike(h, self.v_threshold, self.surrogate), h

    def extra_repr(self) -> str:
        """Return what print shows."""
        return f"beta={self.beta}, late={self.late}, {super().extra_repr()}"
