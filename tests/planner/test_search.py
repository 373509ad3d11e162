"""The search finds what trying everything finds, and its floor is exact."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_nets import FAMILIES, KEPT, predictor, request

from revedge.errors import BudgetError, UsageError
from revedge.planner import explain, ladder
from revedge.planner.cost import Prediction
from revedge.planner.request import KnownRun, Request
from revedge.planner.result import SearchResult
from revedge.planner.search import search
from revedge.planner.setting import Setting


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


def test_a_cut_batch_says_who_cut_it() -> None:
    """A micro-batch that was asked for is not said to be taken for want of memory."""
    predict = predictor((1, 1, 0))
    floor = search(request(1), FAMILIES, predict).floor_bytes
    assert "because nothing else fits" in explain.text(search(request(floor), FAMILIES, predict))
    asked = explain.text(search(request(floor * 9, micro_batch_size=4), FAMILIES, predict))
    assert (
        "sees 4 samples at a time; that is another training than with the whole batch, as asked"
        in asked
    )


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
    with pytest.raises(BudgetError, match="--timesteps 18") as caught:
        result.require()
    assert caught.value.floor_bytes == result.floor_bytes == 9 + 3 * 64 + 64 // 2 + 27
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


def test_spans_are_chosen_where_nothing_faster_fits() -> None:
    """With the bytes of the best way without spans there are none; with one byte less there are, if they may be."""
    predict = predictor((7, 9, 1000))
    without = search(request(10**6, span_count=0), FAMILIES, predict).floor_bytes
    plan = search(request(without), FAMILIES, predict).plan
    assert plan is not None
    assert plan.span_count is None
    plan = search(request(without - 1), FAMILIES, predict).plan
    assert plan is not None
    assert plan.span_count == 8
    assert search(request(without - 1, span_count=0), FAMILIES, predict).plan is None
    asked = search(request(10**6, span_count=3), FAMILIES, predict).plan
    assert asked is not None
    assert asked.span_count == 3
    for changes in ({"device": "cuda"}, {"precision": "bfloat16"}):  # no formula tells their bytes
        assert all(way.span_count is None for way in request(10**6, **changes).ways(8))


@pytest.mark.parametrize(
    "changes",
    [{"prefer": "size"}, {"strategy": "magic"}, {"micro_batch_size": 3}, {"optimizer": "lion"}],
)
def test_wrong_wishes_are_usage_errors(changes: dict[str, object]) -> None:
    """Unknown words and a micro-batch that does not divide the batch are refused at once."""
    with pytest.raises(UsageError):
        request(100, **changes)


def test_ranges_are_climbed_one_after_the_other() -> None:
    """First what is preferred, then depth, then T, each as far as it fits; none outside its range."""
    predict = predictor((1, 3, 0))
    ranges = {"depth": (4, 30), "timesteps": (2, 9)}
    for prefer, first, second in (
        (None, "depth", "timesteps"),
        ("timesteps", "timesteps", "depth"),
    ):
        asked = request(400, ranges=ranges, prefer=prefer)
        result = search(asked, FAMILIES, predict)
        plan = result.require()
        found = {"depth": plan.model_options["depth"], "timesteps": plan.timesteps}

        def least(values: dict[str, int], asked: Request = asked) -> int:
            return min(
                predict(
                    asked.setting(
                        "net9", {"depth": values["depth"]}, values["timesteps"], 8, "adamw", way
                    )
                ).predicted_peak_bytes
                for way in asked.ways(8)
            )

        bottom = {name: low for name, (low, _) in ranges.items()}
        reached = {**bottom, first: found[first]}
        assert least(reached) <= 400
        assert found[first] == ranges[first][1] or least({**reached, first: found[first] + 1}) > 400
        assert least(found) <= 400
        assert (
            found[second] == ranges[second][1] or least({**found, second: found[second] + 1}) > 400
        )
        for name, (low, high) in ranges.items():
            assert low <= found[name] <= high
        goals = {each.reason.split(",")[0] for each in result.rejected}
        assert {f"more {n}" for n in found if found[n] < ranges[n][1]} <= goals


def test_a_range_of_widths() -> None:
    """Of multiples of eight and both ends the widest that fits, beside a depth that is given."""

    def predict(setting: Setting) -> Prediction:
        return Prediction(parts={"base_bytes": 10 * setting.model_options["width"]})

    asked = request(350, ranges={"width": (12, 60)}, model_options={"depth": 3})
    assert search(asked, FAMILIES, predict).require().model_options == {"depth": 3, "width": 32}
    asked = request(700, ranges={"width": (12, 60)})
    assert search(asked, FAMILIES, predict).require().model_options == {"width": 60}


def by_runs(setting: Setting) -> Prediction:
    """Three runs that keep 100, 30 and 10 bytes with each strategy's factor."""
    names = [setting.strategy] * 3 if isinstance(setting.strategy, str) else setting.strategy
    kept = sum(
        KEPT[name] * size + beside
        for name, size, beside in zip(names, (100, 30, 10), (0, 0, 0), strict=True)
    )
    return Prediction(parts={"base_bytes": kept + (1 if setting.slab_bytes else 0)}, runs=3)


def test_runs_have_a_strategy_each() -> None:
    """What a uniform strategy leaves free is given to late runs, which cost the fewest bytes."""
    # `keep-spikes` everywhere, and 100 bytes.
    asked = request(2 * 140 + 100, update_in_backward=False)
    result = search(asked, FAMILIES, by_runs)
    plan = result.require()
    # It takes 70 more; `keep-conv` for the second would take 90.
    assert plan.strategy == ("keep-spikes", "keep-spikes", "store")
    assert plan.predicted_peak_bytes == 2 * 130 + 9 * 10
    assert Setting.of(plan) in [each.setting for each in result.alternatives]
    fixed = request(2 * 140 + 100, strategy="keep-spikes", update_in_backward=False)
    assert search(fixed, FAMILIES, by_runs).require().strategy == "keep-spikes"


def test_widths_are_tried_one_by_one_behind_another_dimension() -> None:
    """Channels are padded, so that a wider net may take less: the widest that fits lies beyond one that does not."""

    def padded(setting: Setting) -> Prediction:
        width = int(setting.model_options["width"])
        return Prediction(parts={"base_bytes": (width + 40 * (width % 16 > 0)) * setting.timesteps})

    asked = request(300, prefer="timesteps", ranges={"width": (8, 64)})
    found = search(asked, FAMILIES, padded).require()
    assert (found.timesteps, found.model_options) == (6, {"width": 48})


def test_rungs_are_in_order() -> None:
    """Members by the number in their name, from one's own on; sixteen widths between the ends; a given depth stays."""
    family = ladder.build(request(1, model="net"), FAMILIES)
    assert [rung.model for rung in family.rungs] == ["net5", "net9", "net21"]
    assert [rung.model for rung in family.dimensions[0].rungs(family.rungs[1])] == ["net9", "net21"]
    wide = ladder.build(request(1, ranges={"width": (8, 1030)}), FAMILIES).dimensions[0]
    assert (wide.values[0], wide.values[-1], len(wide.values)) == (8, 1030, 18)
    given = request(1, prefer="depth", model_options={"depth": 4})
    assert [rung.options for rung in ladder.build(given, FAMILIES).rungs] == [{}]


def test_a_model_that_cannot_be_is_given_up_soon() -> None:
    """Its error is told after some depths, not after all 512."""
    tried = []

    def impossible(setting: Setting) -> Prediction:
        tried.append(setting)
        raise UsageError(f"depth {setting.model_options['depth']} cannot be")

    with pytest.raises(UsageError, match="cannot be"):
        search(request(100, prefer="depth", model="net9"), FAMILIES, impossible)
    assert 5 < len(tried) < 20


def test_no_neighbor_is_worse_in_both() -> None:
    """What takes as much memory and is slower than the choice is not listed."""
    result = search(request(2 * 140 + 100), FAMILIES, by_runs)
    own = result.require().predicted_peak_bytes
    listed = [each for each in result.rejected if "slower" in each.reason]
    assert listed
    assert all(each.predicted_peak_bytes < own for each in listed)


def test_accuracy_per_byte_is_taken_from_finished_trainings() -> None:
    """The best ratio of accuracy above chance to bytes among those that fit; without trainings it is refused."""

    def predict(setting: Setting) -> Prediction:
        return Prediction(
            parts={"base_bytes": {"net5": 100, "net9": 120, "net21": 1000}[setting.model]}
        )

    runs = tuple(
        KnownRun(model=name, model_options={}, timesteps=steps, accuracy=accuracy)
        for name, steps, accuracy in (("net5", 4, 0.45), ("net9", 8, 0.75), ("net21", 8, 0.95))
    )
    asked = request(2000, prefer="accuracy-per-byte", runs=runs)
    plan = search(asked, FAMILIES, predict).require()
    assert (plan.model, plan.timesteps) == ("net9", 8)  # 0.2/100, 0.5/120, 0.7/1000
    three = dataclasses.replace(asked, num_classes=3)  # 0.117/100, 0.417/120, 0.617/1000
    three = dataclasses.replace(
        three, runs=(dataclasses.replace(runs[0], accuracy=0.68), *runs[1:])
    )
    assert (
        search(three, FAMILIES, predict).require().model == "net9"
    )  # 0.68/100 is more than 0.75/120
    small = request(110, prefer="accuracy-per-byte", runs=runs)
    assert search(small, FAMILIES, predict).require().model == "net5"
    with pytest.raises(UsageError, match="--runs"):
        request(2000, prefer="accuracy-per-byte")
