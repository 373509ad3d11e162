"""What each memory strategy keeps between forward and backward. Everything else is made again, bit for bit.

| strategy    | a unit keeps                                          | a block input is found again from          |
|-------------|-------------------------------------------------------|--------------------------------------------|
| store       | its input and its float32 spikes                      | itself: it was kept                        |
| keep-conv   | its input, that is the convolution output before it   | x' - branch output, which was kept         |
| keep-spikes | its spikes at one bit each                            | x' - branch output, one convolution        |
| reverse     | nothing, but the first of a residual branch its bits  | x' - branch output, the branch again       |
| invert      | the output Y of its reversible neuron                 | as keep-conv                               |

Three places differ in where a branch's input comes from. A `feed` has no identity path, so its input is kept (no copy:
it is the output of the run before). A `coupling` has the other half of the stream. A `residual` branch has nothing, so
it is replayed from its first spikes, and its input follows by subtraction; if it begins without a neuron, it is kept.
The arms of a fork stand as in a coupling: what they read, the fork's spikes, is on the tape.
"""

from dataclasses import dataclass
from typing import Literal

from revedge.engine.unit import Unit
from revedge.errors import UsageError

STRATEGIES = ("store", "keep-conv", "keep-spikes", "reverse", "invert")
Place = Literal["feed", "residual", "coupling"]


@dataclass(frozen=True, slots=True)
class Saving:
    """How a run saves memory.

    Attributes:
        strategy: one of `STRATEGIES`.
        slab_bytes: compute the tensors between units in slabs of channels of about so many bytes, see
            `revedge.engine.output`; None: whole. It changes how convolutions are called, in every strategy alike, so
            gradients of different ``slab_bytes`` agree to rounding only.
        keep: leave a tape.
    """

    strategy: str
    slab_bytes: int | None = None
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Keep:
    """What one unit keeps: its input (``pre``), its neuron's output as float32 or as bits."""

    pre: bool = False
    spikes: bool = False
    bits: bool = False


def check_strategy(name: str) -> str:
    """Return ``name`` if it is a strategy.

    Raises:
        UsageError: it is not.
    """
    if name not in STRATEGIES:
        raise UsageError(f"strategy {name!r} is not known; choose one of {', '.join(STRATEGIES)}")
    return name


def what_to_keep(saving: Saving, place: Place, unit: Unit, index: int) -> Keep:
    """Return what ``unit``, the ``index``-th of a branch that stands in ``place``, keeps."""
    if not saving.keep:
        return Keep()
    strategy, first = saving.strategy, index == 0
    if strategy == "store":
        return Keep(pre=not first or place != "feed", spikes=unit.neuron is not None)
    if strategy == "invert" and unit.neuron is not None and not unit.spikes_are_bits:
        return Keep(spikes=True)
    if first and place == "residual" and unit.neuron is None:
        return Keep(pre=True)  # it reads the stream itself, which is rebuilt only after the branch
    if strategy in ("keep-conv", "invert"):
        return Keep(pre=not first)
    if unit.neuron is None and not first:  # a normalization alone: made again from the unit before
        return Keep()
    needed = place == "residual" if first else strategy == "keep-spikes" or place == "feed"
    return Keep(bits=needed and unit.spikes_are_bits, spikes=needed and not unit.spikes_are_bits)


def keeps_output(saving: Saving) -> bool:
    """Whether a branch keeps the output of its last unit for the normalization that follows."""
    return saving.keep and saving.strategy in ("store", "keep-conv", "invert")
