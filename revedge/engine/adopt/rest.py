"""Neurons at rest: a run starts every sequence there, and does not give its last membranes out."""

from typing import Any, NoReturn

from torch import nn

from revedge.errors import UsageError
from revedge.neurons import BaseNode, ReversibleNode


class Spent:
    """Stands where a neuron's membrane would be after a run. `reset_net` takes it away; any use of it is an error."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what copy and pickle ask any object for
            raise AttributeError(name)
        raise UsageError(
            f"the membrane of this neuron ({name} of it) was asked for after a forward pass under apply, "
            "which does not keep it; call reset_net, or leave this neuron out of apply"
        )

    def __repr__(self) -> str:
        return "Spent()"


def check_rest(neurons: list[nn.Module]) -> None:
    """Raise unless every neuron is at rest.

    Raises:
        UsageError: one still holds the membrane of the sequence before.
    """
    for neuron in neurons:
        if not _at_rest(neuron):
            raise UsageError(
                f"a {type(neuron).__name__} is not at rest: call reset_net between sequences (under apply every "
                "sequence starts from rest; a membrane that goes on from call to call is not kept)"
            )


def spend(neurons: list[nn.Module]) -> None:
    """Mark neurons as used, so that a missing `reset_net` is noticed and nobody reads an old membrane."""
    for neuron in neurons:
        memories = _memories(neuron)
        if memories is None:
            neuron.__dict__["v"] = Spent()
        else:
            for name in memories:
                memories[name] = Spent()


def forget(neurons: list[nn.Module]) -> None:
    """Put neurons that a run has used back to rest."""
    for neuron in neurons:
        memories = _memories(neuron)
        if memories is None and isinstance(neuron.__dict__.get("v"), Spent):
            neuron.__dict__["v"] = None
        for name, value in list((memories or {}).items()):
            if isinstance(value, Spent):
                memories[name] = neuron.__dict__["_memories_rv"][name]  # type: ignore[index]


def _memories(neuron: nn.Module) -> dict[str, Any] | None:
    """SpikingJelly's table of states, empty where a neuron keeps none; None for our neurons."""
    if isinstance(neuron, BaseNode | ReversibleNode):
        return None
    memories: dict[str, Any] = neuron.__dict__.get("_memories", {})
    return memories


def _at_rest(neuron: nn.Module) -> bool:
    memories = _memories(neuron)
    if memories is None:
        return neuron.__dict__.get("v") is None
    resting = neuron.__dict__.get("_memories_rv", {})
    return all(
        type(value) in (float, int, type(None)) and value == resting[name]
        for name, value in memories.items()
    )
