"""Back through a chain of states of which few are kept: the binomial schedule.

State 0 is known; state i + 1 follows from state i. They are wanted from the last to the first, and few fit beside each
other, so some are made again. Griewank and Walther, Algorithm 799 "Revolve" (ACM TOMS 26, 2000), tell where to keep
which: with r the least number for which ``binomial(most + r, most) >= count``, all states are had with

    r * count - binomial(most + r, most + 1)

steps, and there is no schedule with fewer.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple


class Way(NamedTuple):
    """How to get to state ``goal``: from ``start``, which is kept (0 always is); keep ``stops``, which are passed."""

    goal: int
    start: int
    stops: tuple[int, ...]


def ways_back(count: int, most: int) -> Iterator[Way]:
    """Yield the ways to the states ``count - 1`` to 0, in this order.

    Never are more than ``most`` states there, at 1 or more, the one that has been got to included and state 0, which
    costs nothing, left out. A kept state is forgotten when it has been got to.
    """
    kept = [0]
    for index in reversed(range(count)):
        while kept[-1] > index:
            kept.pop()
        start = kept[-1]
        stops: list[int] = []
        while (slots := most + 1 - len(kept)) > 1 and kept[-1] < index:
            stop = kept[-1] + _first_stop(index - kept[-1] + 1, slots)
            if stop >= index:
                break
            kept.append(stop)
            stops.append(stop)
        yield Way(index, start, tuple(stops))


def steps_back(count: int, most: int) -> int:
    """Return how many steps from a state to the next `ways_back` takes in all."""
    repeats = _repeats(count, most)
    return repeats * count - math.comb(most + repeats, most + 1)


def _repeats(count: int, most: int) -> int:
    """How often at most a step is taken."""
    repeats = 0
    while math.comb(most + repeats, most) < count:
        repeats += 1
    return repeats


def _first_stop(count: int, slots: int) -> int:
    """Of ``count`` states, the first of which fills one of ``slots``: which one to keep first."""
    repeats = _repeats(count, slots)
    fewest = count - math.comb(slots + repeats - 1, slots - 1)
    return max(1, fewest, math.comb(slots + repeats - 2, slots))
