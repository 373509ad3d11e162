"""The binomial schedule: every state is got to, from what is kept, in the fewest steps."""

import functools

import pytest

from revedge.binomial import steps_back, ways_back


@functools.cache
def fewest(count: int, most: int) -> int:
    """By trying where to keep the first state; an independent definition."""
    if count == 1:
        return 0
    found = count * (count - 1) // 2
    if most > 1:
        for first in range(1, count):
            rest = fewest(count - first, most - 1) + fewest(first, most)
            found = min(found, first + rest)
    return found


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 7, 11, 30, 99, 120])
def test_fewest_steps_and_never_more_states_than_asked_for(most: int) -> None:
    """For all counts to 100: the optimum, the closed form, and no state used that is not there."""
    for count in range(1, 101):
        kept, steps = {0}, 0
        for expected, way in zip(reversed(range(count)), ways_back(count, most), strict=True):
            kept = {state for state in kept if state <= expected}
            assert way.goal == expected
            assert way.start in kept
            assert max(kept) == way.start
            assert all(way.start < stop < way.goal for stop in way.stops)
            kept.update(way.stops)
            steps += way.goal - way.start
            assert len(kept | {way.goal}) - 1 + (way.goal == 0) <= most
        assert steps == steps_back(count, most) == fewest(count, most)
