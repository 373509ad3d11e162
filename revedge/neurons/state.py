"""Hidden state: what a streaming graph must carry, and the helpers that SpikingJelly users know."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from revedge.errors import UsageError

StepMode = Literal["s", "m"]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state tensor: its name, its shape without the batch, and what it starts from."""

    name: str
    shape: tuple[int, ...]
    init: float


@runtime_checkable
class Stateful(Protocol):
    """A module with a hidden state ``v``; None before the first step."""

    v: Tensor | None
    step_mode: StepMode


def check_step_mode(mode: str) -> StepMode:
    """Return ``mode``, or raise UsageError unless it is "s" or "m"."""
    if mode == "s" or mode == "m":
        return "s" if mode == "s" else "m"
    raise UsageError(f"step_mode {mode!r} does not exist; use 's' (one step) or 'm' (all steps)")


def _stateful(module: nn.Module) -> list[Stateful]:
    # What isinstance(m, Stateful) asks, in a twentieth of the time; nets are reset in every training step.
    return [m for m in module.modules() if hasattr(m, "v") and hasattr(m, "step_mode")]  # type: ignore[misc]


def reset_net(module: nn.Module) -> None:
    """Forget the hidden state of every neuron in ``module``, SpikingJelly's too; call it between sequences."""
    for neuron in _stateful(module):
        if "_memories" in vars(neuron):
            neuron.reset()  # type: ignore[attr-defined]  # SpikingJelly's rest is no None
        else:
            neuron.v = None


def detach_net(module: nn.Module) -> None:
    """Keep every hidden state but cut its gradient, as truncated back-propagation does."""
    for neuron in _stateful(module):
        if neuron.v is not None:
            neuron.v = neuron.v.detach()


def set_step_mode(module: nn.Module, mode: str) -> None:
    """Set "s" (one step, [B, ...]) or "m" (a sequence, [T, B, ...]) on every neuron."""
    checked = check_step_mode(mode)
    for neuron in _stateful(module):
        neuron.step_mode = checked
