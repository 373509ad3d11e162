"""SpikingJelly's neurons and layers as parts (versions 0.0.0.0.14 and 2.0.0), without importing SpikingJelly."""

from typing import Any

from torch import nn

from revedge.engine.adopt.parts import (
    NORMS,
    ON_ANY,
    ON_PLANES,
    Layout,
    Part,
    UnfitError,
    flatten_part,
    norm_part,
    parts_of,
    tail_part,
    view_as,
)
from revedge.neurons import BaseNode, IFNode, LIFNode, ParametricLIFNode, Surrogate

# Names of SpikingJelly's surrogates whose derivative, with the same alpha, is one of ours.
_SURROGATES = {
    "ATan": "atan",
    "Sigmoid": "sigmoid",
    "PiecewiseQuadratic": "triangle",
    "Rect": "rectangle",
}
NEURONS = ("IFNode", "LIFNode", "ParametricLIFNode")
_CONTAINERS = ("SeqToANNContainer", "StepModeContainer")


def recognize(module: nn.Module, grid: bool) -> list[Part] | None:
    """Return the parts that a SpikingJelly module is; None if it is none of SpikingJelly's.

    Raises:
        UnfitError: a run cannot hold it.
    """
    place, name = type(module).__module__, type(module).__name__
    if not place.startswith("spikingjelly.activation_based."):
        if any(base.__module__.startswith("spikingjelly.") for base in type(module).__mro__):
            raise UnfitError(f"{name} is a subclass of the user's own")
        return None
    if ".neuron" in place:
        return [Part("neuron", "time", _neuron(module, name), source=module)]
    if name in _CONTAINERS:
        return _container(module, grid)
    if name == "Dropout":
        return [_dropout(module)]
    return [_layer(module, name)]


def _neuron(module: Any, name: str) -> BaseNode:
    """Return the neuron that a run may hold in the place of ``module``."""
    if getattr(module, "step_mode", "m") != "m":
        raise UnfitError(
            "it runs step by step (step_mode 's'); call functional.set_step_mode(net, 'm')"
        )
    if getattr(module, "store_v_seq", False):
        raise UnfitError("it stores its membrane (store_v_seq), which a run does not")
    if name not in NEURONS:
        raise UnfitError(f"the neuron {name} is not known to the engine")
    return neuron_of(module, _surrogate(module.surrogate_function))


def neuron_of(module: Any, surrogate: Surrogate) -> BaseNode:
    """Return the neuron of ours with the arithmetic and the parameters of SpikingJelly's.

    Raises:
        UnfitError: there is none.
    """
    name = type(module).__name__
    if name not in NEURONS:
        raise UnfitError(f"the neuron {name} is not known to the engine")
    if getattr(module, "_neuron_precision", None) is not None:
        raise UnfitError("it has a precision of its own")
    if not module.surrogate_function.spiking:
        raise UnfitError("its surrogate is not spiking (set_spiking_mode)")
    common: dict[str, Any] = {
        "v_threshold": module.v_threshold,
        "v_reset": module.v_reset,
        "detach_reset": module.detach_reset,
        "surrogate": surrogate,
    }
    if name == "IFNode":
        return IFNode(**common)
    if name == "LIFNode":
        return LIFNode(tau=module.tau, decay_input=module.decay_input, **common)
    node = ParametricLIFNode(decay_input=module.decay_input, **common)
    if set(module._parameters) != {"w"} or module.w.dim() != 0:
        raise UnfitError("it learns something else than one time constant")
    node._parameters = module._parameters  # one table, so that w is always the user's
    return node


def _surrogate(function: Any) -> Surrogate:
    name = type(function).__name__
    if name not in _SURROGATES or not type(function).__module__.startswith("spikingjelly."):
        raise UnfitError(f"the surrogate {name} is not known to the engine")
    return Surrogate(_SURROGATES[name], float(function.alpha))


def _layer(module: Any, name: str) -> Part:
    known: tuple[type[nn.Module], ...] = (*NORMS, *ON_PLANES, *ON_ANY, nn.Flatten)
    plain = next((kind for kind in known if kind.__name__ == name), None)
    if plain is None or not isinstance(module, plain) or type(module).__bases__[0] is not plain:
        raise UnfitError(f"the layer {name} is not known to the engine")
    takes: Layout = "time" if getattr(module, "step_mode", "") == "m" else "planes"
    view = view_as(module, plain)
    if plain in NORMS:
        return norm_part(view, takes)
    if isinstance(view, nn.Flatten):
        if takes == "time" and view.start_dim != 1:
            raise UnfitError(f"flattening axes from {view.start_dim} leaves more than one")
        return flatten_part(view, takes)
    return tail_part(view, "any" if plain in ON_ANY else takes)


def _dropout(module: Any) -> Part:
    if module.step_mode != "m":
        raise UnfitError("dropout step by step; call functional.set_step_mode(net, 'm')")
    note = (
        "its masks are drawn elsewhere: one for all time steps as before, but other random numbers"
    )
    return Part(
        "dropout", "time", None, float(module.p) if module.training else 0.0, module, (note,)
    )


def _container(module: Any, grid: bool) -> list[Part]:
    """Modules on planes inside, ``[T, B, ...]`` outside."""
    if getattr(module, "stateful", False) or getattr(module, "step_mode", "m") != "m":
        raise UnfitError("a container with state, or step by step, is not known to the engine")
    children: list[nn.Module] = list(module)
    inner = [part for child in children for part in parts_of(child, grid=grid)]
    if any(part.takes == "time" for part in inner):
        raise UnfitError("it holds a module that wants [T, B, ...]")
    first = Part("skip", "time")
    return [
        first,
        *(Part(p.kind, "any", p.module, p.probability, p.source, p.notes) for p in inner),
    ]
