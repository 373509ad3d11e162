"""Spiking neurons: modules in SpikingJelly's vocabulary, each with an explicit-state ``step``."""

import revedge.need_torch  # noqa: F401
from revedge.neurons.base import BaseNode
from revedge.neurons.integrate import IFNode, LateResetNode, LIFNode, ParametricLIFNode
from revedge.neurons.reversible import ReversibleNode
from revedge.neurons.reversible_backward import BACKWARDS
from revedge.neurons.state import StateSpec, detach_net, reset_net, set_step_mode
from revedge.neurons.surrogate import Surrogate

__all__ = [
    "BACKWARDS",
    "BaseNode",
    "IFNode",
    "LIFNode",
    "LateResetNode",
    "ParametricLIFNode",
    "ReversibleNode",
    "StateSpec",
    "Surrogate",
    "detach_net",
    "reset_net",
    "set_step_mode",
]
