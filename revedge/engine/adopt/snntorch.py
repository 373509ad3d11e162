"""snnTorch's neurons as parts (version 1.0.0), without importing snnTorch.

They are written for one step and are called in a loop, which no run can hold; `OverTime` holds the loop. With the reset
to zero they are a LIF without input decay: ``h = beta v + x``, a spike where ``h > threshold``. With the reset by
subtraction the threshold is taken off after the leak, a step late (`LateResetNode`): exports take that, runs do not.
Without the delay it is taken off, or given back, wherever the membrane has crossed the threshold: no neuron here.
"""

from typing import Any

import torch
from torch import nn

from revedge.engine.adopt.over_time import OverTime
from revedge.engine.adopt.parts import Part, UnfitError, has_hooks
from revedge.neurons import BaseNode, IFNode, LateResetNode, LIFNode, Surrogate

_RESET = "its reset ({!r}) is not one of the engine's; reset_mechanism='zero' is"
_SURROGATES = {"atan.<locals>.inner": "atan", "sigmoid.<locals>.inner": "sigmoid"}


def recognize(module: nn.Module, grid: bool) -> list[Part] | None:
    """Return the part that an `OverTime` or a neuron of snnTorch is; None if it is neither.

    Raises:
        UnfitError: a run cannot hold it.
    """
    del grid
    if isinstance(module, OverTime):
        if has_hooks(module.neuron):
            raise UnfitError("its neuron has hooks, which a run would not call")
        return [Part("neuron", "time", _neuron(module.neuron), source=module)]
    if any(kind.__module__.startswith("snntorch.") for kind in type(module).__mro__):
        raise UnfitError("it runs step by step; hold the loop over time in revedge.engine.OverTime")
    return None


def _neuron(leaky: Any) -> BaseNode:
    """Return the neuron that a run may hold in the place of ``leaky``."""
    node = neuron_of(leaky, None)
    if list(leaky.parameters()):
        raise UnfitError("it learns beta, threshold or spike size")
    if node.v_reset is None:
        raise UnfitError(_RESET.format("subtract"))
    return node


def neuron_of(leaky: Any, surrogate: Surrogate | None) -> BaseNode:
    """Return the neuron of ours with the arithmetic and the parameters of snnTorch's, learned ones as they stand.

    Args:
        leaky: the neuron.
        surrogate: None: the neuron's own.

    Raises:
        UnfitError: there is none.
    """
    kind = type(leaky)
    if kind.__name__ != "Leaky" or not kind.__module__.startswith("snntorch."):
        raise UnfitError(f"{kind.__name__} over time is not known to the engine")
    if leaky.inhibition or leaky.state_quant or float(leaky.graded_spikes_factor.detach()) != 1.0:
        raise UnfitError(
            "inhibition, quantized states and graded spikes are not known to the engine"
        )
    if leaky.beta.numel() != 1 or leaky.threshold.numel() != 1:
        raise UnfitError("it has a beta or threshold per neuron")
    beta = min(max(float(leaky.beta.detach()), 0.0), 1.0)
    threshold = float(leaky.threshold.detach())
    # Without a leak it is the same whether the threshold is taken off before or after it.
    late = leaky.reset_mechanism == "subtract" and leaky.reset_delay
    soft = late and beta == 1.0
    if leaky.reset_mechanism == "subtract" and not late:
        raise UnfitError(
            "its reset ('subtract') has no delay (reset_delay=False), which no neuron here does"
        )
    if leaky.reset_mechanism != "zero" and not late:
        raise UnfitError(_RESET.format(leaky.reset_mechanism))
    if beta == 0.0 or threshold < 0.0:
        raise UnfitError(f"beta {beta} and threshold {threshold} make another neuron of it")
    chosen = _surrogate(leaky.spike_grad) if surrogate is None else surrogate
    if late and not soft:
        return LateResetNode(beta, threshold, chosen)
    # It fires above the threshold, ours fire at it: the next float32 is the same for every membrane.
    above = torch.nextafter(torch.tensor(threshold), torch.tensor(float("inf")))
    common: dict[str, Any] = {
        "v_threshold": float(above),
        "v_reset": None if soft else 0.0,
        "detach_reset": bool(leaky.reset_delay),  # without the delay the reset is differentiated
        "surrogate": chosen,
    }
    return (
        IFNode(**common)
        if beta == 1.0
        else LIFNode(tau=1.0 / (1.0 - beta), decay_input=False, **common)
    )


def _surrogate(spike: Any) -> Surrogate:
    name = _SURROGATES.get(getattr(spike, "__qualname__", ""))
    cells: list[Any] = list(getattr(spike, "__closure__", None) or ())
    if name is None or not spike.__module__.startswith("snntorch.") or len(cells) != 1:
        raise UnfitError(
            f"the surrogate {getattr(spike, '__qualname__', spike)!r} is not known to the engine"
        )
    return Surrogate(name, float(cells[0].cell_contents))
