"""What `revedge plan` prints beside the plan: numbers that can be compared."""

import dataclasses

import pytest
from toy_nets import FAMILIES, predictor, request

from revedge.planner import explain
from revedge.planner.result import SearchResult
from revedge.planner.search import search
from revedge.planner.setting import Setting
from revedge.units import format_bytes


@pytest.fixture
def found() -> SearchResult:
    return search(request(3000, prefer="depth"), FAMILIES, predictor((5, 1, 100)))


def test_a_rehearsed_choice_is_compared_with_its_computed_bytes(found: SearchResult) -> None:
    """Neighbors are computed, so the computed bytes of a rehearsed choice stand beside them; else nothing is said."""
    plan = found.require()
    assert "rehearsed" not in explain.text(found)
    assert "computed" not in explain.text(found)
    assert "computed_peak_bytes" not in explain.payload(found, 3000)
    computed = plan.predicted_peak_bytes
    parts = {**plan.parts, "base_bytes": 50, "spread_bytes": 7}
    plan = dataclasses.replace(plan, parts=parts, predicted_peak_bytes=sum(parts.values()))
    rehearsed = dataclasses.replace(found, plan=plan, computed_peak_bytes=computed)
    text = explain.text(rehearsed)
    assert f"predicted peak {format_bytes(plan.predicted_peak_bytes)} (rehearsed) of " in text
    assert f"not chosen (computed; so computed, the choice takes {format_bytes(computed)}):" in text
    assert explain.payload(rehearsed, 3000)["computed_peak_bytes"] == computed


@pytest.mark.parametrize(("count", "chosen"), [(2, 1), (6, 0), (7, 3), (40, 1), (40, 39), (41, 17)])
def test_the_front_is_told_in_few_lines(found: SearchResult, count: int, chosen: int) -> None:
    """At most six points, in order, the fastest and the least among them, and the choice, which is marked."""
    plan = found.require()
    own = Setting.of(plan)
    points = [
        dataclasses.replace(
            found.alternatives[0],
            setting=own if n == chosen else dataclasses.replace(own, slab_bytes=(n + 100) << 20),
            predicted_peak_bytes=(1000 - n) << 20,
            on_front=True,
        )
        for n in range(count)
    ]
    beaten = dataclasses.replace(points[0], on_front=False)
    told = explain.text(dataclasses.replace(found, alternatives=(*points, beaten))).splitlines()
    place = next(n for n, line in enumerate(told) if line.startswith("memory against time"))
    lines = told[place + 1 : place + 1 + min(6, count)]
    assert (f"6 of {count} points" in told[place]) is (count > 6)
    assert not told[place + 1 + len(lines)].startswith("  ")
    shown = [line.split("times the step")[0] for line in lines]
    sizes = [format_bytes(each.predicted_peak_bytes) for each in points]
    places = [next(n for n, size in enumerate(sizes) if size in line) for line in shown]
    assert places == sorted(set(places))
    assert {0, count - 1, chosen} <= set(places)
    assert [line.endswith("  chosen") for line in lines] == [n == chosen for n in places]


def test_one_point_is_no_front(found: SearchResult) -> None:
    """Where one way beats all others nothing is said."""
    alone = dataclasses.replace(found, alternatives=found.alternatives[:1])
    assert "memory against time" not in explain.text(alone)
