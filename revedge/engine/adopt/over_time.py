"""A neuron that is written for one step, over a whole sequence: how snnTorch's `Leaky` fits in here."""

import torch
from torch import Tensor, nn

from revedge.errors import UsageError


class OverTime(nn.Module):
    """Run a neuron of snnTorch over ``[T, B, ...]``, from rest, and return its spikes ``[T, B, ...]``.

    A plain loop under ordinary autograd. `revedge.engine.apply` puts a kernel in its place where it can: for
    ``Leaky(reset_mechanism="zero")`` with one fixed beta and the surrogates atan and sigmoid.

    Args:
        neuron: takes ``(x, mem)`` and returns ``(spikes, mem)``, or with ``init_hidden`` takes x and returns spikes.
    """

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of the sequence ``x``.

        Raises:
            UsageError: the neuron returns its membrane, too.
        """
        hidden = bool(getattr(self.neuron, "init_hidden", False))
        if hidden and getattr(self.neuron, "output", False):
            raise UsageError("OverTime returns spikes only; make the neuron without output=True")
        mem: Tensor = self.neuron.reset_mem()  # type: ignore[operator]
        spikes = []
        for x_t in x:
            if hidden:
                spikes.append(self.neuron(x_t))
            else:
                s, mem = self.neuron(x_t, mem)
                spikes.append(s)
        return torch.stack(spikes)
