"""Times of steps: two probes on a line, an interval that holds, real steps that correct it."""

import dataclasses
import math
import os
import signal
import time
from typing import Any
from unittest import mock

import pytest

from revedge.planner import memory, step_time, timing
from revedge.planner.cost import Prediction
from revedge.planner.request import Request
from revedge.planner.result import SearchResult
from revedge.planner.search import search
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime, measure, probed
from revedge.planner.trace_client import TraceClient

SETTING = Setting(
    model="revsresnet11",
    model_options={"width": 8},
    in_shape=(2, 16, 16),
    num_classes=4,
    timesteps=8,
    batch_size=64,
    micro_batch_size=32,
    strategy="reverse",
)


@pytest.mark.parametrize(
    ("most", "timesteps", "samples"), [(64, 8, 8), (16, 8, 2), (4, 4, 1), (999, 8, 32)]
)
def test_probes_are_smaller(most: int, timesteps: int, samples: int) -> None:
    """Samples are left out first, then time steps; one micro-batch is a batch."""
    found = probed(SETTING, most)
    assert (found.timesteps, found.micro_batch_size, found.batch_size) == (
        timesteps,
        samples,
        samples,
    )


def test_a_line_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A step of 10 ms and 1 ms per frame is found again at 256 frames, twice for two micro-batches."""
    monkeypatch.setenv("REVEDGE_CACHE", str(tmp_path))
    points = [[frames, 0.01 + 0.001 * frames, 0.01 + 0.001 * frames] for frames in (16, 64)]
    with mock.patch.object(step_time, "_points", return_value=[points]):
        (found,) = measure([SETTING])
    assert found is not None
    assert found.middle_s == pytest.approx(2 * (0.01 + 0.256))
    assert found.least_s < found.middle_s < found.most_s
    with (
        mock.patch.object(step_time, "_points", side_effect=AssertionError),
        pytest.raises(AssertionError),
    ):
        measure([dataclasses.replace(SETTING, timesteps=9)])
    with mock.patch.object(step_time, "_points", return_value=[]) as asked:
        assert measure([SETTING]) == [found]
        assert asked.call_args.args[0] == []  # it is remembered


def test_a_real_network_is_probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Of two networks the one that works eight times as much takes longer; a model that is not there has no time."""
    monkeypatch.setenv("REVEDGE_CACHE", str(tmp_path))
    small = dataclasses.replace(SETTING, timesteps=2, batch_size=4, micro_batch_size=4)
    large = dataclasses.replace(small, timesteps=8, batch_size=8, micro_batch_size=8)
    none = dataclasses.replace(small, model="no-such-net")
    first, second, third = measure([small, large, none])
    assert first is not None
    assert second is not None
    assert 0 < first.least_s < second.most_s
    assert first.middle_s < second.middle_s
    assert third is None


def test_real_steps_correct_an_estimate() -> None:
    """The first step is left out; the more steps agree, the narrower the interval."""
    before = StepTime(least_s=1.0, most_s=4.0, source="probes")
    assert before.corrected([]) == before
    few = before.corrected([9.0, 3.0])
    many = before.corrected([9.0] + [3.0] * 25)
    for found in (few, many):
        assert found.source == "steps"
        assert found.middle_s == pytest.approx(3.0)
    assert 1 < many.most_s / many.least_s < few.most_s / few.least_s
    assert before.corrected([5.0]).middle_s == pytest.approx(5.0)
    uneven = before.corrected([9.0, 1.0, 3.0, 2.0, 4.0])
    assert uneven.least_s < 2 < 3 < uneven.most_s


_PEAKS = {"store": 900, "keep-conv": 700, "keep-spikes": 400, "reverse": 300}


def predict(setting: Setting) -> Prediction:
    """Memory by strategy; slabs and updates only add."""
    beside = 1 if setting.slab_bytes else 0
    return Prediction(parts={"base_bytes": _PEAKS[str(setting.strategy)] + beside})


def found_for(prefer: str | None, seconds: dict[str, float]) -> SearchResult:
    request = Request(
        budget_bytes=800,
        data="random",
        in_shape=(2, 8, 8),
        num_classes=4,
        model="net9",
        batch_size=8,
        prefer=prefer,
    )
    found = search(request, {"net": ["net9"]}, predict)

    def times(settings: list[Setting], **_: object) -> list[StepTime | None]:
        return [
            StepTime(
                least_s=seconds[str(s.strategy)] * 0.9,
                most_s=seconds[str(s.strategy)] * 1.1,
                source="probes",
            )
            for s in settings
        ]

    with mock.patch.object(step_time, "measure", times):
        return timing.timed(found, request, lambda setting: predict(setting).parts)


def test_measured_times_decide_about_speed() -> None:
    """Where the planner's order of ways is wrong here, --prefer speed follows the clock; else only the front does."""
    seconds = {"store": 1.0, "keep-conv": 3.0, "keep-spikes": 1.2, "reverse": 1.25}
    assert found_for(None, seconds).require().strategy == "keep-conv"
    fast = found_for("speed", seconds)
    assert fast.require().strategy == "keep-spikes"
    assert fast.require().predicted_peak_bytes == 400
    front = [str(each.setting.strategy) for each in fast.alternatives if each.on_front]
    # `keep-conv` is slower and larger than keep-spikes.
    assert front == ["store", "keep-spikes", "reverse"]
    assert all(each.step_time is not None for each in fast.alternatives)


def test_times_that_overlap_change_nothing() -> None:
    """A difference within the intervals is none."""
    seconds = {"store": 1.0, "keep-conv": 1.2, "keep-spikes": 1.1, "reverse": 1.3}
    assert found_for("speed", seconds).require().strategy == "keep-conv"


def test_what_is_not_probed_is_told_by_its_factor() -> None:
    """Ways off the front take the plan's time by the ratio of their factors."""
    found = found_for(None, {"store": 1.0, "keep-conv": 2.0, "keep-spikes": 2.2, "reverse": 2.3})
    (slab,) = (
        each
        for each in found.alternatives
        if each.setting.slab_bytes == 8 << 20
        and each.setting.strategy == "keep-conv"
        and not each.setting.update_in_backward
    )
    assert slab.step_time is not None
    assert slab.step_time.source == "factors"
    assert slab.step_time.middle_s == pytest.approx(2.0 * 1.06 * math.sqrt(0.9 * 1.1))


@pytest.mark.parametrize(
    ("factor", "budget", "lacks", "precision", "why"),
    [
        (0.8, 800, None, "bfloat16", None),
        (0.95, 800, None, "float32", "it is not measured to be faster"),
        (None, 800, None, "float32", "it is not measured to be faster"),
        (0.5, 708, None, "float32", "over the budget"),
        (0.5, 800, "this CPU has no such thing", "float32", "this CPU has no such thing"),
    ],
)
def test_bfloat16_is_taken_where_it_is_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch,
    factor: float | None,
    budget: int,
    lacks: str | None,
    precision: str,
    why: str | None,
) -> None:
    """With --precision auto a step that is a tenth shorter decides, if it fits; else the reason stands there."""
    found = found_for(None, dict.fromkeys(_PEAKS, 1.0))
    own = found.step_time
    assert own is not None
    low = None if factor is None else own.times(factor, "probes")
    monkeypatch.setattr(step_time, "measure", lambda settings, **_: [low])
    monkeypatch.setattr(timing, "cpu_lacks_bfloat16", lambda: lacks)
    request = Request(
        budget_bytes=budget, data="random", in_shape=(2, 8, 8), num_classes=4, precision="auto"
    )
    after = timing.in_less_precision(found, request, lambda setting: {"base_bytes": 710})
    plan = after.require()
    assert plan.precision == precision
    if why is None:
        assert plan.predicted_peak_bytes == 710
        assert after.step_time == low
        (row,) = (each for each in after.alternatives if each.setting.precision == "bfloat16")
        assert row.on_front
    else:
        assert (
            after.rejected[-1].reason == f"bfloat16, but {why}" or why in after.rejected[-1].reason
        )


def test_a_busy_machine_is_remembered_for_minutes_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Steps that took much longer on the clock than on a core are timed again later; others never."""
    monkeypatch.setenv("REVEDGE_CACHE", str(tmp_path))
    now_s = time.time()
    monkeypatch.setattr(memory.time, "time", lambda: now_s)
    quiet = [[16, 0.010, 0.012], [64, 0.040, 0.051]]
    busy = [[16, 0.010, 0.012], [64, 0.040, 0.060]]
    asked: list[int] = []

    def answers(module: str, wanted: Any) -> list[Any]:
        asked.append(len(wanted["pairs"]))
        return [quiet if pair[0]["model"] == "vgg5" else busy for pair in wanted["pairs"]]

    monkeypatch.setattr(step_time, "answers", answers)
    both = [dataclasses.replace(SETTING, model=name) for name in ("vgg5", "vgg11")]
    first = step_time.measure(both)
    assert step_time.measure(both) == first
    now_s += 599
    assert step_time.measure(both) == first
    assert asked == [2]
    now_s += 2
    assert step_time.measure(both) == first
    assert asked == [2, 1]  # the busy one


def test_steps_are_timed_where_torch_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The tracing process times them; where it ends over that nothing is told, and another answers what comes next."""
    monkeypatch.setenv("REVEDGE_CACHE", str(tmp_path))
    small = dataclasses.replace(SETTING, batch_size=2, micro_batch_size=2)
    with TraceClient() as client:
        before = client.trace(small)
        process_id = client.process_id
        (found,) = measure([small], seconds=60, ask=client.ask)
        assert found is not None
        assert 0 < found.least_s < found.most_s < 60
        assert client.process_id == process_id
        other = dataclasses.replace(small, timesteps=3)
        assert client.trace(other)["peak_bytes"] < before["peak_bytes"]
        assert process_id is not None
        os.kill(process_id, signal.SIGKILL)
        assert measure([other], seconds=60, ask=client.ask) == [None]
        assert client.process_id is None
        assert client.trace(dataclasses.replace(small, timesteps=2))["peak_bytes"] > 0
