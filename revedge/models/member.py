"""A named model: its published defaults, and how it is built."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from revedge.errors import UsageError
from revedge.models.net import SpikingNet
from revedge.models.parts import scaled, spread
from revedge.models.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What a user may change about the size of a named model; None keeps what was published.

    Attributes:
        width: channels of the first stage; the others scale with it.
        depth: number of blocks over all stages.
        heads: attention heads.
    """

    width: int | None = None
    depth: int | None = None
    heads: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Member(ABC):
    """One name of the registry. Each family has its own kind.

    Attributes:
        neuron, tau, surrogate: of all its neurons; the published ones.
        allow_reversible: whether the real-valued output of the reversible neuron fits in.
    """

    neuron: str = "if"
    tau: float = 2.0
    surrogate: str = "atan"
    allow_reversible: bool = False

    @abstractmethod
    def build(self, task: Task, size: Size) -> SpikingNet:
        """Return the net for ``task``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Staged(Member):
    """A member that is made of stages of blocks.

    Attributes:
        widths: channels per stage.
        blocks: blocks per stage.
        dvs_stem: it begins by halving event frames of 128x128 twice.
    """

    widths: Sequence[int] = ()
    blocks: Sequence[int] = ()
    dvs_stem: bool = False

    def sized(self, task: Task, size: Size) -> tuple[list[int], list[int]]:
        """Widths and blocks of every stage.

        Raises:
            UsageError: heads were given, or fewer blocks than stages.
        """
        refuse(task, "heads", size.heads, "it has no attention")
        blocks = list(self.blocks) if size.depth is None else spread(size.depth, len(self.blocks))
        return scaled(self.widths, size.width), blocks


def refuse(task: Task, name: str, value: int | None, why: str) -> None:
    """Raise UsageError if an option was given that the model does not have."""
    if value is not None:
        raise UsageError(f"{name}={value} does not apply to {task.config['name']}: {why}")
