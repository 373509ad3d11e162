"""The search finds what trying everything finds, and its floor is exact."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revedge.errors import BudgetError, UsageError
from revedge.planner import ladder
from revedge.planner.cost import Prediction
from revedge.planner.request import Request
from revedge.planner.search import SearchResult, search
from revedge.planner.setting import Setting

FAMILIES = {"net": ["net5", "net9", "net21"], "odd": ["odd3", "odd7"]}
_SLAB = {None: 3, 32 << 20: 3, 8 << 20: 2, 2 << 20: 1}
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
        kept = _KEPT[str(setting.strategy)] * depth * per_depth + 3 * setting.timesteps * per_step
        # Slabs help some strategies and hurt others, as they do.
        slab = _SLAB[setting.slab_bytes]
        beside = (slab if setting.strategy != "keep-conv" else 4 - slab) * setting.timesteps
        state = (2 if setting.optimizer == "adamw" else 1) + (not setting.update_in_backward)
        return Prediction(
            parts={
                "base_bytes": fixed,
                "activations_bytes": (kept + beside) * setting.micro_batch_size,
                "optimizer_bytes": state * depth,
            }
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
    every = itertools.product(enumerate(rungs), asked.micro_batches(), asked.optimizers())
    for (place, rung), micro, optimizer, way in (
        (*one, way) for one in every for way in asked.ways(one[1])
    ):
        setting = asked.setting(rung.model, rung.options, rung.timesteps, micro, optimizer, way)
        try:
            peak = predict(setting).predicted_peak_bytes
        except UsageError:
            continue
        floor = peak if floor is None else min(floor, peak)
        if peak > asked.budget_bytes:
            continue
        speed = -way.time_factor
        wish = (speed, place) if asked.prefer == "speed" else (place, speed)
        key = (micro, optimizer == asked.optimizers()[0], *wish)
        if best_key is None or key > best_key:
            best_key, best = key, setting
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
    optimizer=st.sampled_from([None, "sgd", "any"]),
    slab=st.sampled_from([None, 0, 8 << 20]),
    update=st.sampled_from([None, False]),
)
def test_equals_brute_force(
    slopes: tuple[int, int, int],
    budget: int,
    model: str,
    prefer: str | None,
    timesteps: int | None,
    strategy: str | None,
    micro: int | None,
    optimizer: str | None,
    slab: int | None,
    update: bool | None,
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
        optimizer=optimizer,
        slab_bytes=slab,
        update_in_backward=update,
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
    """Of 80,000 configurations some hundred are predicted, and more depth than was found does not fit."""
    result = search(request(10_000, prefer="depth"), FAMILIES, predictor((5, 1, 0)))
    assert result.plan is not None
    assert result.space > 10_000
    assert result.tried <= 150


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
    with pytest.raises(BudgetError, match="--timesteps 16") as caught:
        result.require()
    assert caught.value.floor_bytes == result.floor_bytes == 9 + 4 * 64 + 27
    assert "--budget 1MiB" in str(caught.value)
    assert len(result.rejected) == 4


def test_unknown_model_is_a_usage_error() -> None:
    """A name that is neither model nor family is answered with close ones."""
    with pytest.raises(UsageError, match="did you mean net"):
        search(request(100, model="nett9"), FAMILIES, predictor((1, 1, 0)))


def test_the_front_holds_what_nothing_beats() -> None:
    """On the front each takes less memory than all that are faster; the choice is the fastest that fits."""
    result = search(request(3000, prefer="depth"), FAMILIES, predictor((5, 1, 0)))
    plan, front = result.require(), [each for each in result.alternatives if each.on_front]
    peaks = [each.predicted_peak_bytes for each in front]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks) > 1
    fitting = [each for each in result.alternatives if each.predicted_peak_bytes <= 3000]
    assert fitting[0].setting == Setting.of(plan)
    for each in result.alternatives:
        beaten = [
            other
            for other in result.alternatives
            if other.time_factor <= each.time_factor
            and other.predicted_peak_bytes <= each.predicted_peak_bytes
            and other is not each
        ]
        assert each.on_front or beaten


def test_no_update_in_backward_with_micro_batches() -> None:
    """Gradients that are summed over micro-batches cannot be used up unit by unit."""
    asked = request(1000)
    assert any(way.update_in_backward for way in asked.ways(8))
    assert not any(way.update_in_backward for way in asked.ways(4))
    assert request(1000, update_in_backward=True).micro_batches() == [8]


@pytest.mark.parametrize(
    "changes",
    [{"prefer": "size"}, {"strategy": "magic"}, {"micro_batch_size": 3}, {"optimizer": "lion"}],
)
def test_wrong_wishes_are_usage_errors(changes: dict[str, object]) -> None:
    """Unknown words and a micro-batch that does not divide the batch are refused at once."""
    with pytest.raises(UsageError):
        request(100, **changes)
