"""The rungs below a plan: their order, what is left out, what they mean, and their file."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from revedge.errors import DeviceError, PlanFormatError, UsageError
from revedge.planner.cost import Prediction
from revedge.planner.descent import (
    EXACT,
    OTHER_BATCHES,
    TO_ROUNDING,
    descend,
    describe,
    dump,
    load,
    rungs_below,
    smaller_micro_batch,
)
from revedge.planner.plan import Plan
from revedge.planner.setting import Setting

_KEPT = {"store": 800, "keep-conv": 400, "invert": 300, "keep-spikes": 200, "reverse": 100}


def _plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "model": "vgg5", "data": "random", "in_shape": (2, 8, 8), "num_classes": 2, "timesteps": 2, "batch_size": 12,
        "micro_batch_size": 12, "strategy": "store", "budget_bytes": 10_000, "predicted_peak_bytes": 7,
        "parts": {"base_bytes": 7},
    }  # fmt: skip
    return Plan(**(values | changes))


def _predict(setting: Setting) -> Prediction:
    """Made up: kept bytes by strategy and micro-batch, gradients, and what stands beside them."""
    names = (setting.strategy,) if isinstance(setting.strategy, str) else setting.strategy
    kept = sum(_KEPT[name] for name in names) * setting.micro_batch_size // 12
    beside = 50 if setting.slab_bytes is None else min(50, setting.slab_bytes >> 20)
    beside -= 1 if setting.span_count else 0
    gradients = 10 if setting.update_in_backward else 30
    return Prediction(parts={"base_bytes": 1000, "activations_bytes": kept + beside + gradients})


def test_what_changes_no_number_comes_first() -> None:
    """Strategies, update in backward, slabs, then halves of the micro-batch; each needs less, each is predicted."""
    rungs = descend(_plan(), _predict)
    assert [rung.change for rung in rungs] == [
        "",
        "strategy store -> keep-conv",
        "strategy keep-conv -> keep-spikes",
        "strategy keep-spikes -> reverse",
        "update in backward",
        "whole tensors -> slabs 32.0 MiB",
        "slabs 32.0 MiB -> slabs 8.0 MiB",
        "slabs 8.0 MiB -> slabs 2.0 MiB",
        "all time steps -> 8 spans of time",
        "micro-batch 12 -> 6",
        "micro-batch 6 -> 3",
        "micro-batch 3 -> 1",
    ]
    assert [rung.effect for rung in rungs[1:]] == [EXACT] * 4 + [TO_ROUNDING] * 3 + [EXACT] + [
        OTHER_BATCHES
    ] * 3
    for rung in rungs:
        assert dict(rung.plan.parts) == dict(_predict(Setting.of(rung.plan)).parts)
    peaks = [rung.plan.predicted_peak_bytes for rung in rungs]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)
    assert not rungs[-1].plan.update_in_backward  # gradients are summed over micro-batches
    assert describe(rungs[-1].plan) == "reverse slabs 2.0 MiB in 8 spans, micro-batch 1"


def test_a_rung_that_needs_no_less_is_left_out() -> None:
    """Where a strategy saves nothing, or cannot exist, the next one is taken from the rung above."""

    def predict(setting: Setting) -> Prediction:
        if setting.strategy == "reverse":
            raise UsageError("no")
        flat = dataclasses.replace(
            setting, slab_bytes=None, span_count=None, update_in_backward=False
        )
        return _predict(dataclasses.replace(flat, strategy="store"))

    changes = [rung.change for rung in descend(_plan(), predict)]
    assert changes == ["", "micro-batch 12 -> 6", "micro-batch 6 -> 3", "micro-batch 3 -> 1"]


def test_time_is_cut_only_where_formulas_tell_what_that_takes() -> None:
    """A training in bfloat16 or on a GPU has no rung of spans; a plan in more spans keeps them."""
    for changes in ({"precision": "bfloat16"}, {"device": "cuda"}):
        assert not any("spans" in rung.change for rung in descend(_plan(**changes), _predict))
    rungs = descend(_plan(span_count=16), _predict)
    assert {rung.plan.span_count for rung in rungs} == {16}


def test_runs_with_a_strategy_each() -> None:
    """Only the weaker runs are raised, and a reversible neuron has one rung more."""
    plan = _plan(strategy=("store", "reverse"), model_options={"neuron": "reversible"})
    strategies = [rung.plan.strategy for rung in descend(plan, _predict)]
    assert strategies[:5] == [
        ("store", "reverse"),
        ("keep-conv", "reverse"),
        ("invert", "reverse"),
        ("keep-spikes", "reverse"),
        "reverse",
    ]


def test_smaller_micro_batches_divide_the_batch() -> None:
    """Each step down is the largest divisor that is at most half; 1 is the end."""
    sizes = [24]
    while (size := smaller_micro_batch(24, sizes[-1])) is not None:
        sizes.append(size)
    assert sizes == [24, 12, 6, 3, 1]


def test_the_file_gives_the_rungs_back_for_another_training_of_the_same_memory(
    tmp_path: Path,
) -> None:
    """Learning rate and epochs are the running plan's; strategy, prediction and parts are the rung's."""
    rungs = descend(_plan(), _predict)
    (tmp_path / "ladder.json").write_text(dump(rungs))
    again = load((tmp_path / "ladder.json").read_text())
    assert again == rungs
    running = dataclasses.replace(again[2].plan, learning_rate=0.5, epochs=3)
    found = rungs_below(running, again)
    assert found is not None
    assert [rung.change for rung in found] == [rung.change for rung in rungs[3:]]
    assert found[0].plan == dataclasses.replace(rungs[3].plan, learning_rate=0.5, epochs=3)
    assert rungs_below(_plan(timesteps=9), again) is None


def test_every_rung_is_taken_over_whole() -> None:
    """For another training, whatever it does by then: the same setting, and the prediction of it."""
    running = _plan(learning_rate=0.5, epochs=3)
    for rung in descend(_plan(), _predict):
        taken = rung.of(running).plan
        assert Setting.of(taken) == Setting.of(rung.plan)
        assert taken.parts == rung.plan.parts
        assert (taken.learning_rate, taken.epochs) == (0.5, 3)


def test_pieces_are_not_updated_in_backward_and_errors_leave_a_rung_out() -> None:
    """Of a plan in micro-batches; where slabs cannot be predicted here, the next rung is told without them."""

    def told(setting: Setting) -> Prediction:
        if setting.slab_bytes is not None:
            raise DeviceError("the tracing process was killed")
        return _predict(setting)

    plan = _plan(strategy="reverse", micro_batch_size=6)
    assert [rung.change for rung in descend(plan, told)[1:]] == [
        "all time steps -> 8 spans of time",
        "micro-batch 6 -> 3",
        "micro-batch 3 -> 1",
    ]
    assert describe(plan) == "reverse, micro-batch 6"
    assert describe(_plan(strategy="reverse")) == "reverse"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1, "rungs": [{}]}', '{"version": 2, "rungs": []}']
)
def test_a_damaged_file_is_an_error(text: str) -> None:
    """Neither is taken for a ladder."""
    with pytest.raises(PlanFormatError, match="ladder"):
        load(text)
