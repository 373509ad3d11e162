"""The search finds what trying everything finds, and its floor is exact."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revedge.errors import BudgetError, UsageError
from revedge.planner import ladder
from revedge.planner.cost import Prediction
from revedge.planner.request import TIME_FACTORS, Request
from revedge.planner.search import SearchResult, search
from revedge.planner.setting import Setting

FAMILIES = {"net": ["net5", "net9", "net21"], "odd": ["odd3", "odd7"]}
_KEPT = {"store": 9, "keep-conv": 5, "keep-spikes": 2, "reverse": 1}
# A deeper member may take less memory than a shallower one (fewer channels), as in real families.
_MEMBER = {"net5": 5, "net9": 9, "net21": 7, "odd3": 4, "odd7": 2}


def predictor(slopes: tuple[int, int, int]):  # type: ignore[no-untyped-def]
    """Memory that grows with depth, T, micro-batch and what the strategy keeps."""
    per_depth, per_step, fixed = slopes

    def predict(setting: Setting) -> Prediction:
        depth = setting.model_options.get("depth", _MEMBER[setting.model])
        if "depth" in setting.model_options and depth < 2:
            raise UsageError(f"depth {depth} is too small; use 2 or more")
        kept = _KEPT[setting.strategy] * depth * per_depth + 3 * setting.timesteps * per_step
        return Prediction(
            parts={"base_bytes": fixed, "activations_bytes": kept * setting.micro_batch_size}
        )

    return predict


def request(budget: int, **changes: object) -> Request:
    values: dict[str, object] = {
        "data": "random",
        "in_shape": (2, 8, 8),
        "num_classes": 4,
        "model": "net9",
        "batch_size": 8,
    }
    return Request(budget_bytes=budget, **{**values, **changes})  # type: ignore[arg-type]


def everything(asked: Request, predict) -> tuple[Setting | None, int]:  # type: ignore[no-untyped-def]
    """Oracle: predict every configuration, take the best by a sort key; no bisection, no order."""
    rungs = ladder.build(asked, FAMILIES).rungs
    best_key, best, floor = None, None, None
    for (place, rung), micro, strategy in itertools.product(
        enumerate(rungs), asked.micro_batches(), asked.strategies()
    ):
        setting = asked.setting(rung.model, rung.options, rung.timesteps, micro, strategy)
        try:
            peak = predict(setting).predicted_peak_bytes
        except UsageError:
            continue
        floor = peak if floor is None else min(floor, peak)
        if peak > asked.budget_bytes:
            continue
        speed = -TIME_FACTORS[strategy]
        wish = (speed, place) if asked.prefer == "speed" else (place, speed)
        if best_key is None or (micro, *wish) > best_key:
            best_key, best = (micro, *wish), setting
    assert floor is not None
    return best, floor


def chosen(result: SearchResult) -> Setting | None:
    return None if result.plan is None else Setting.of(result.plan)


@settings(max_examples=150, deadline=None)
@given(
    slopes=st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(0, 3000)),
    budget=st.integers(1, 60_000),
    model=st.sampled_from(["net", "odd", "net9", "odd7"]),
    prefer=st.sampled_from([None, "depth", "timesteps", "speed"]),
    timesteps=st.sampled_from([None, 3]),
    strategy=st.sampled_from([None, "keep-conv"]),
    micro=st.sampled_from([None, 4]),
)
def test_equals_brute_force(
    slopes: tuple[int, int, int],
    budget: int,
    model: str,
    prefer: str | None,
    timesteps: int | None,
    strategy: str | None,
    micro: int | None,
) -> None:
    """Choice and floor are those of an independent search over every configuration."""
    predict = predictor(slopes)
    asked = request(
        budget,
        model=model,
        prefer=prefer,
        timesteps=timesteps,
        strategy=strategy,
        micro_batch_size=micro,
    )
    best, floor = everything(asked, predict)
    result = search(asked, FAMILIES, predict)
    assert chosen(result) == best
    assert result.floor_bytes == floor
    assert (best is None) == (budget < floor)


def test_floor_fits_and_one_byte_less_does_not() -> None:
    """Training with the floor as budget is feasible, with a byte less it is not."""
    predict = predictor((7, 3, 1000))
    floor = search(request(1), FAMILIES, predict).floor_bytes
    assert search(request(floor), FAMILIES, predict).plan is not None
    assert search(request(floor - 1), FAMILIES, predict).plan is None


def test_bisection_tries_few() -> None:
    """512 depths are searched with some 20 predictions per strategy, not with 512."""
    result = search(request(10_000, prefer="depth"), FAMILIES, predictor((5, 1, 0)))
    assert result.plan is not None
    assert result.tried <= 20 * 4


def test_rejected_neighbors_say_why() -> None:
    """Faster strategies and one block more are listed with the bytes that they miss."""
    result = search(request(3000, prefer="depth"), FAMILIES, predictor((5, 1, 0)))
    plan = result.require()
    assert plan.strategy == "reverse"
    deeper = [each for each in result.rejected if "more depth" in each.reason]
    assert [each.setting.model_options["depth"] for each in deeper] == [
        plan.model_options["depth"] + 1
    ]
    for each in result.rejected:
        over = each.predicted_peak_bytes - 3000
        assert each.missing_bytes == max(0, over) > 0
        assert "over the budget" in each.reason


def test_infeasible_names_floor_and_way_out() -> None:
    """A budget that is too small raises with the floor and at least one thing to change."""
    result = search(request(100, timesteps=64), FAMILIES, predictor((1, 1, 0)))
    with pytest.raises(BudgetError, match="--timesteps 30") as caught:
        result.require()
    assert caught.value.floor_bytes == result.floor_bytes == 9 + 3 * 64
    assert "--budget 1MiB" in str(caught.value)
    assert len(result.rejected) == 4


def test_unknown_model_is_a_usage_error() -> None:
    """A name that is neither model nor family is answered with close ones."""
    with pytest.raises(UsageError, match="did you mean net"):
        search(request(100, model="nett9"), FAMILIES, predictor((1, 1, 0)))


@pytest.mark.parametrize(
    "changes", [{"prefer": "size"}, {"strategy": "magic"}, {"micro_batch_size": 3}]
)
def test_wrong_wishes_are_usage_errors(changes: dict[str, object]) -> None:
    """Unknown words and a micro-batch that does not divide the batch are refused at once."""
    with pytest.raises(UsageError):
        request(100, **changes)
