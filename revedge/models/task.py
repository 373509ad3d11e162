"""What a net is for: the arguments that every builder shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from revedge.engine import Feed, Run
from revedge.errors import UsageError
from revedge.models.net import SpikingNet
from revedge.neurons import BaseNode, ReversibleNode


class MakeNeuron(Protocol):
    """Makes one neuron of the kind that the whole net has."""

    def __call__(self, *, v_threshold: float = 1.0) -> BaseNode | ReversibleNode:
        """Return a new neuron."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Shapes, classes, timesteps and neuron of a net, whatever it is made of.

    Attributes:
        in_shape: (C, H, W).
        num_classes: number of classes.
        timesteps: T.
        static: images instead of event frames.
        neuron: makes one neuron.
        config: what `revedge.models.create` was called with.
    """

    in_shape: tuple[int, int, int]
    num_classes: int
    timesteps: int
    static: bool
    neuron: MakeNeuron
    config: dict[str, Any]

    def net(self, stem: Feed, body: Sequence[Run], head: Feed) -> SpikingNet:
        """Put the parts together."""
        return SpikingNet(
            stem=stem,
            body=body,
            head=head,
            in_shape=self.in_shape,
            num_classes=self.num_classes,
            timesteps=self.timesteps,
            static=self.static,
            config=self.config,
        )

    def check_size(self, halvings: int) -> None:
        """Raise UsageError when the input is too small to be halved ``halvings`` times."""
        height, width = self.in_shape[1:]
        if min(height, width) < 2**halvings:
            least = 2**halvings
            raise UsageError(
                f"{self.config['name']} halves its input {halvings} times, which {height}x{width} "
                f"pixels do not allow; use frames of {least}x{least} or more, or a member with "
                "fewer stages"
            )
