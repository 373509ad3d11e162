"""A strategy for each run: the fastest choice that fits, a knapsack with a maximum; or the least. Free of torch.

What a run keeps stands until its backward pass, so what is live during run i is what the runs before it keep, and its
own. A choice fits if that is within the limit for every run. So the runs are gone through once, from the first, and of
all choices so far only those stay than which none keeps less and is faster: the others cannot become part of a better
one. Time: strategies x runs x choices that stay, some dozens; it finds what trying every combination finds, but
where slabs let a run compute the next one's input: then a choice may take less than is told here, never more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from revedge.planner.way import TIME_FACTORS


class Part(NamedTuple):
    """One run under one strategy: bytes that it keeps, the most live in it above what stood before, and its time."""

    kept: int
    top: int
    time: float


class _Choice(NamedTuple):
    cost: float  # time, or the most live bytes
    kept: int
    names: tuple[str, ...]


_Cost = Callable[[_Choice, Part], float]  # of a choice with one more part


def fastest_first(
    parts: Mapping[str, Sequence[Part]], start_bytes: int, limit_bytes: int
) -> list[tuple[str, ...]]:
    """Return the choices that stay, the fastest first; none where nothing fits.

    Args:
        parts: of every run in order, under each strategy.
        start_bytes: live before the first run.
        limit_bytes: of live bytes.
    """

    def seconds(choice: _Choice, part: Part) -> float:
        fits = choice.kept + part.top <= limit_bytes
        return choice.cost + part.time if fits else math.inf

    return _cheapest_first(parts, start_bytes, seconds)


def least_first(parts: Mapping[str, Sequence[Part]], start_bytes: int) -> list[tuple[str, ...]]:
    """Return the choices that stay if bytes are the cost: first the one with the fewest live bytes at its peak.

    Args:
        parts: of every run in order, under each strategy.
        start_bytes: live before the first run.
    """

    def most_bytes(choice: _Choice, part: Part) -> float:
        return max(choice.cost, choice.kept + part.top)

    return _cheapest_first(parts, start_bytes, most_bytes)


def _cheapest_first(
    parts: Mapping[str, Sequence[Part]], start_bytes: int, cost: _Cost
) -> list[tuple[str, ...]]:
    found = [_Choice(0.0, start_bytes, ())]
    for run in zip(*parts.values(), strict=True):
        longer = [
            _Choice(cost(choice, part), choice.kept + part.kept, (*choice.names, name))
            for choice in found
            for name, part in zip(parts, run, strict=True)
        ]
        found = _best([choice for choice in longer if choice.cost < math.inf])
    return [choice.names for choice in found]


def _best(choices: list[_Choice]) -> list[_Choice]:
    """Those than which none costs and keeps as little, the cheapest first."""
    found: list[_Choice] = []
    for choice in sorted(choices):
        if not found or choice.kept < found[-1].kept:
            found.append(choice)
    return found


def climbed(
    names: Sequence[str], faster: Sequence[str], fits: Callable[[Sequence[str]], bool]
) -> list[str]:
    """Where bytes are not known run by run: from the last run to the first, give each the fastest strategy that fits.

    In that order they add few bytes for the time that they save: stages become smaller towards the head, and what a
    late run keeps is used up before the peak of an early one. It ends after two runs that have to stay.
    """
    found, stayed = list(names), 0
    for place in range(len(found) - 1, -1, -1):
        for name in sorted(faster, key=TIME_FACTORS.__getitem__) if stayed < 2 else ():
            if len(found) > 1 and fits([*found[:place], name, *found[place + 1 :]]):
                found[place] = name
                break
        else:
            stayed += 1
    return found
