"""IF, LIF and parametric LIF."""

import math

import torch
from torch import Tensor, nn

from revedge.errors import UsageError
from revedge.kernels import NeuronParams
from revedge.neurons import functional
from revedge.neurons.base import BaseNode
from revedge.neurons.surrogate import Surrogate


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
