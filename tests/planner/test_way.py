"""Ways of saving memory: what is asked for reaches every one of them, and how long they take against each other."""

from typing import Any

import pytest

from revedge.errors import UsageError
from revedge.planner.request import Request
from revedge.planner.way import Way


def request(**changes: Any) -> Request:
    return Request(
        budget_bytes=1, data="digits", in_shape=(2, 8, 8), num_classes=10, batch_size=8, **changes
    )


def test_few_membranes_and_chunks_that_are_asked_for_are_in_every_way() -> None:
    """They are not chosen: without the wish there are none."""
    for way in request(span_count=3, membrane_count=2, chunk_bytes=1 << 20).ways(8):
        assert (way.span_count, way.membrane_count, way.chunk_bytes) == (3, 2, 1 << 20)
        assert " in 3 spans with 2 membranes chunks 1.0 MiB" in way.text()
    for way in request().ways(8):
        assert (way.membrane_count, way.chunk_bytes) == (None, None)


@pytest.mark.parametrize("spans", [None, 0])
def test_membranes_are_those_of_spans(spans: int | None) -> None:
    """Asked for without a number of spans they are a usage error that says what to give."""
    with pytest.raises(UsageError, match="--membranes 2 are those of spans of time; give --spans"):
        request(span_count=spans, membrane_count=2)


def test_fewer_membranes_take_more_time() -> None:
    """By convolutions of a block of two: 8 whole, 13 in spans, and what is made again between spans."""
    whole = Way(strategy="reverse").time_factor

    def in_spans(membranes: int | None) -> float:
        return (
            Way(strategy="reverse", span_count=16, membrane_count=membranes).time_factor * 8 / whole
        )

    assert in_spans(None) == pytest.approx(13)
    # With all kept each state is gone to once: 15 steps; from rest each time 15 + 14 + ... + 1 = 120; of two, 45.
    assert in_spans(16) == pytest.approx(13 + 2 * (15 / 16 + 1))
    assert in_spans(2) == pytest.approx(13 + 2 * (45 / 16 + 1))
    assert in_spans(1) == pytest.approx(13 + 2 * (120 / 16 + 1))
