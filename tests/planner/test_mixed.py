"""What no one strategy for all runs fits in, a strategy for each run may."""

import pytest

from revedge.planner.cost import ByRun, Prediction
from revedge.planner.request import Request
from revedge.planner.search import search
from revedge.planner.setting import Setting

FAMILIES = {"net": ["net3", "net5"]}
START_BYTES = 1000
# (kept, top) of an early run, which matters by what it keeps, and of a late one, whose own peak is the highest.
RUNS = {
    "store": [(500, 600), (90, 900)],
    "keep-conv": [(400, 600), (80, 300)],
    "keep-spikes": [(60, 400), (20, 700)],
    "reverse": [(50, 400), (20, 750)],
}
LEAST_UNIFORM = START_BYTES + 400 + 300  # keep-conv
LEAST = START_BYTES + 400  # keep-spikes or reverse, then keep-conv: the early run's own top
SLACK = 1.01


def predict(setting: Setting) -> Prediction:
    """Live bytes as runs add up, the slack's share, 5 bytes less with an update in backward; net5 takes 40 more."""
    names = [setting.strategy] * 2 if isinstance(setting.strategy, str) else setting.strategy
    live, peak = START_BYTES + (40 if setting.model == "net5" else 0), 0
    start = live
    for run, name in enumerate(names):
        kept, top = RUNS[name][run]
        peak, live = max(peak, live + top), live + kept
    beside = 95 if setting.update_in_backward else 100
    runs = None
    if isinstance(setting.strategy, str):
        runs = ByRun(start, RUNS[setting.strategy], [10, 10])
    parts = {"base_bytes": beside, "activations_bytes": round(peak * SLACK)}
    return Prediction(parts=parts, runs=2, live_bytes=peak, by_run=runs)


def asked(budget_bytes: int, **changes: object) -> Request:
    """A request at batch 2."""
    values = {"data": "random", "in_shape": (2, 8, 8), "num_classes": 4, "batch_size": 2}
    return Request(budget_bytes=budget_bytes, **{"model": "net3", **values, **changes})  # type: ignore[arg-type]


def least_bytes(live: int) -> int:
    """The prediction at the least live bytes."""
    return 95 + round(live * SLACK)


def test_the_floor_is_that_of_the_least_mixture() -> None:
    """One byte less is refused with this floor; the floor itself is planned, with a strategy for each run."""
    floor = least_bytes(LEAST)
    assert floor < least_bytes(LEAST_UNIFORM)
    plan = search(asked(floor), FAMILIES, predict).require()
    assert plan.strategy == ("keep-spikes", "keep-conv")  # reverse keeps less and is slower
    assert plan.predicted_peak_bytes == floor
    below = search(asked(floor - 1), FAMILIES, predict)
    assert below.plan is None
    assert below.floor_bytes == floor
    assert below.floor_setting is not None
    assert isinstance(below.floor_setting.strategy, tuple)
    # The floor's own reason is listed with those of the uniform ways.
    assert floor in [each.predicted_peak_bytes for each in below.rejected]


@pytest.mark.parametrize("prefer", [None, "depth", "speed"])
def test_the_batch_stays_whole_by_a_mixture(prefer: str | None) -> None:
    """Cutting the batch is the last resort: a mixture comes before it."""
    plan = search(asked(least_bytes(LEAST), prefer=prefer), FAMILIES, predict).require()
    assert plan.micro_batch_size == 2
    assert not isinstance(plan.strategy, str)


def test_of_members_the_deepest_that_a_mixture_fits_in() -> None:
    """A family is gone through from its deepest member."""
    roomy = search(asked(least_bytes(LEAST + 40), model="net"), FAMILIES, predict).require()
    assert roomy.model == "net5"
    tight = search(asked(least_bytes(LEAST + 40) - 1, model="net"), FAMILIES, predict).require()
    assert tight.model == "net3"


def test_the_next_member_is_told_with_its_least_mixture() -> None:
    """What a deeper member misses is told of the least that it could take."""
    found = search(asked(least_bytes(LEAST + 40) - 1, model="net"), FAMILIES, predict)
    deeper = [each for each in found.rejected if each.setting.model == "net5"]
    assert [(each.predicted_peak_bytes, each.missing_bytes) for each in deeper] == [
        (least_bytes(LEAST + 40), 1)
    ]


def test_a_strategy_that_was_asked_for_is_not_mixed() -> None:
    """Its floor is its own."""
    found = search(asked(least_bytes(LEAST), strategy="keep-conv"), FAMILIES, predict)
    assert found.plan is None
    assert found.floor_bytes == least_bytes(LEAST_UNIFORM)
