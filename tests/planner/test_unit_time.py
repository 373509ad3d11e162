"""Times summed from units: what is a part, what a sum of them is, and that real parts can be timed."""

import dataclasses
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest

from revedge.planner import step_time, timing, unit_time
from revedge.planner.cost import Prediction
from revedge.planner.form.shape import Net, net_of
from revedge.planner.request import Request
from revedge.planner.search import search
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime
from revedge.planner.trace_child import geometry

SETTING = Setting(
    model="ms-resnet10",
    model_options={"width": 8, "depth": 16},
    in_shape=(2, 16, 16),
    num_classes=4,
    timesteps=8,
    batch_size=64,
    micro_batch_size=32,
    strategy="reverse",
)


def net(setting: Setting) -> Net:
    """Its geometry."""
    return net_of(geometry(setting))


def keys(setting: Setting) -> list[str]:
    """Names of its parts."""
    return [part.key for part in unit_time.parts_of(net(setting), setting)]


def test_equal_blocks_are_one_part_whatever_the_depth() -> None:
    """A deeper net has the same parts, more of some; another strategy or slab has others."""
    deep = dataclasses.replace(SETTING, model_options={"width": 8, "depth": 64})
    assert keys(deep) == keys(SETTING)
    counts = [[part.count for part in unit_time.parts_of(net(s), s)] for s in (SETTING, deep)]
    assert counts[0][:5] == [1, 8, 1, 7, 1]
    assert counts[1][:5] == [1, 32, 1, 31, 1]
    mixed = dataclasses.replace(SETTING, strategy=("store", *["reverse"] * 4))
    assert [a == b for a, b in zip(keys(mixed), keys(SETTING), strict=True)] == [False] + [True] * 5
    slabs = dataclasses.replace(SETTING, slab_bytes=1 << 20)
    assert set(keys(slabs)) & set(keys(SETTING)) == {keys(SETTING)[-1]}  # the update


def test_parts_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """18 blocks of 1 ms and 10 us a frame, and the update, in two micro-batches of 256 frames."""
    monkeypatch.setenv("REVEDGE_CACHE", str(tmp_path))
    line = [[frames, 0.001 + 1e-5 * frames, 0.001 + 1e-5 * frames] for frames in (16, 64)]
    update = [[1000, 1e-6, 1e-6]]

    def points(asked: dict[str, Any], ask: object) -> list[list[list[float]]]:
        return [update if part["run"] < 0 else line for part in asked["parts"]]

    with mock.patch.object(unit_time, "_points", points):
        (found,) = unit_time.measure([(net(SETTING), SETTING)])
    assert found is not None
    values = sum(size // 4 * count for size, count in net(SETTING).parameters.items())
    blocks_s = 18 * 2 * (0.001 + 256e-5)
    assert found.source == "units"
    assert found.middle_s == pytest.approx(blocks_s + values * 1e-9, rel=0.01)
    with mock.patch.object(unit_time, "_points", side_effect=AssertionError):
        again = unit_time.measure([(net(SETTING), SETTING), (None, SETTING)])
    assert again == [found, None]  # it is remembered; without a geometry there are no parts


@pytest.mark.parametrize("model", ["ms-resnet6", "revsresnet11", "resnet18", "vgg5"])
def test_parts_of_every_kind_of_run_can_be_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, model: str
) -> None:
    """Feeds, residual blocks, couplings and forks run by themselves."""
    monkeypatch.setenv("REVEDGE_CACHE", str(tmp_path))
    setting = dataclasses.replace(
        SETTING, model=model, model_options={"width": 4}, batch_size=2, micro_batch_size=2
    )
    setting = dataclasses.replace(setting, strategy=("store",) * len(net(setting).runs))
    (found,) = unit_time.measure([(net(setting), setting)])
    assert found is not None
    assert 0 < found.least_s < found.most_s


def test_ways_are_ranked_by_their_units() -> None:
    """Where units tell another order than the factors, the front and the times follow them."""
    peaks = {"store": 900, "keep-conv": 700, "keep-spikes": 400, "reverse": 300}

    def predict(setting: Setting) -> Prediction:
        return Prediction(parts={"base_bytes": peaks[str(setting.strategy)]})

    request = Request(
        budget_bytes=800, data="random", in_shape=(2, 8, 8), num_classes=4, model="net9",
        batch_size=8,
    )  # fmt: skip
    found = search(request, {"net": ["net9"]}, predict)
    seconds = {"store": 1.0, "keep-conv": 2.0, "keep-spikes": 3.0, "reverse": 1.5}

    def units(settings: Sequence[Setting], limit: float) -> list[StepTime | None]:
        assert limit == timing.SECONDS / 2
        told = [seconds[str(each.strategy)] for each in settings]
        return [StepTime(least_s=t, most_s=t, source="units") for t in told]

    def steps(settings: list[Setting], **_: object) -> list[StepTime | None]:
        times = [10 * seconds[str(each.strategy)] for each in settings]
        return [StepTime(least_s=t, most_s=t, source="probes") for t in times]

    with mock.patch.object(step_time, "measure", steps):
        after = timing.timed(found, request, lambda s: predict(s).parts, units=units)
    by_name: dict[str, StepTime] = {}
    for each in after.alternatives:
        assert each.step_time is not None
        by_name.setdefault(str(each.setting.strategy), each.step_time)
    assert by_name["keep-spikes"].source == "units"  # off the front: slower and larger than reverse
    assert by_name["keep-spikes"].middle_s == pytest.approx(30.0)
    front = [str(each.setting.strategy) for each in after.alternatives if each.on_front]
    assert front == ["store", "reverse"]
