"""Under what name a graph keeps a state that never leaves it: in what multiple, and of which neurons.

A state that is reset to 0 is kept as its negative (onnx_neurons.py), and one that is charged by a stream as what the
stream is kept as: an integer on its grid, 2^14 times as large. Multiples are powers of two, so no bit depends on them.
Neurons that are the same and begin at rest are one: a value may belong to several states, and a state be several
values, one behind the other along the channels, in the order in which the graph carries them.

    next_state_3                   as it is
    minus_next_state_3             its negative
    minus_16384_next_state_3       -16384 times it
    minus_next_state_3_5           the negative of state 3, and of state 5 or of a part of it
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_KEPT = re.compile(r"(?:minus_(?:(\d+)_)?)?((?:next_)?state_)(\d+(?:_\d+)*)")


@dataclass(frozen=True, slots=True)
class Kept:
    """A value that the graph carries: ``multiple`` times all of ``states[0]``, or its last part, and of the others."""

    states: tuple[str, ...]
    multiple: float


def kept_name(state: str, multiple: float, others: Iterable[int] = ()) -> str:
    """Return the name under which ``multiple`` times ``state`` is kept; a multiple is 1, or negative.

    ``others`` are the numbers of further states that it belongs to.
    """
    name = "_".join([state, *map(str, others)])
    if multiple == 1.0:
        return name
    return f"minus_{name}" if multiple == -1.0 else f"minus_{-multiple:.0f}_{name}"


def read_kept(name: str) -> Kept | None:
    """Return which states ``name`` says are kept, and in what multiple; None for other values.

    >>> read_kept("minus_16384_next_state_3_5")
    Kept(states=('next_state_3', 'next_state_5'), multiple=-16384.0)
    """
    found = _KEPT.fullmatch(name)
    if found is None:
        return None
    times, prefix, numbers = found.groups()
    states = tuple(prefix + number for number in numbers.split("_"))
    return Kept(states, -float(times or 1) if name.startswith("minus_") else 1.0)
