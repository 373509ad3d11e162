"""What `revedge plan` prints beside the plan: numbers that can be compared."""

import dataclasses

import pytest
from toy_nets import FAMILIES, predictor, request

from revedge.planner import explain
from revedge.planner.result import SearchResult
from revedge.planner.search import search
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
