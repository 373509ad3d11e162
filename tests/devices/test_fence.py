"""The fence around a real training whose plan is wrong, and what the watch inside the trainer costs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from revedge.data.writer import Samples, write_cache
from revedge.devices import watch
from revedge.devices.metrics_log import read_metrics
from revedge.devices.orders import Orders
from revedge.devices.run_folder import RunFolder, RunSettings
from revedge.devices.trainer import margin_bytes
from revedge.planner import base

from .conftest import make_plan
from .processes import DEADLINE_S, Start

MIB = 1 << 20


def test_no_step_goes_over_the_budget_not_even_the_first(tmp_path: Path, start: Start) -> None:
    """Two samples of a long recording take twice the budget: the one before the first stands behind a fence too."""
    timesteps, side = 32, 32
    frames = np.zeros((4, timesteps, 2, side, side), np.uint8)
    samples = Samples(
        (2, side, side), timesteps, ("a", "b"), np.arange(4) % 2, 2, 1.0, iter(frames)
    )
    write_cache(samples, tmp_path / "cache", "long", {}, {})
    # What this machine's torch takes before there is a network; some builds of it take twice as much as others.
    measured = base.measure(torch.get_num_threads())
    base_bytes = measured.trainer_bytes("ms-resnet10") + measured.supervisor_bytes
    # store keeps some 30 tensors of 4 * 32 * 2 * 32 * 32 * 32 bytes: 240 MiB, for which there are 70.
    plan = make_plan(
        model="ms-resnet10",
        model_options={"width": 32},
        in_shape=(2, side, side),
        timesteps=timesteps,
        batch_size=2,
        micro_batch_size=2,
        strategy="store",
        epochs=1,
        budget_bytes=base_bytes + 70 * MIB,
        predicted_peak_bytes=base_bytes,  # of activations it knows nothing
        parts={"base_bytes": base_bytes},
    )
    run = RunFolder(tmp_path / "run")
    run.make()
    run.begin(plan.to_toml(), RunSettings(str(tmp_path / "cache"), seed=0))
    process = start("train", "--resume", str(run.path))
    _, err = process.communicate(timeout=DEADLINE_S)
    lines = read_metrics(run.metrics)
    peak = max(line.get("peak_bytes", 0) for line in lines)
    assert "warning: out of memory" in err
    assert process.returncode == 0 or "nothing that takes less is left" in err
    assert 0.7 * base_bytes < peak <= plan.budget_bytes


@pytest.mark.parametrize(
    ("rest", "room_mib", "margin_mib"),
    [
        ("slack_bytes", 0, 2),
        ("slack_bytes", 5, 5),
        ("slack_bytes", 50, 6),
        ("spread_bytes", 1, 0),
        ("spread_bytes", 5, 3),
        ("spread_bytes", 50, 6),
    ],
)
def test_a_rehearsed_plan_keeps_room_for_what_it_maps_and_never_touches(
    rest: str, room_mib: int, margin_mib: int
) -> None:
    """What is left of the budget is kept between it and the fence: 2 to 6 MiB, without a slack 2 MiB less."""
    plan = make_plan(
        parts={"base_bytes": 300 * MIB, rest: MIB},
        predicted_peak_bytes=301 * MIB,
        budget_bytes=(301 + room_mib) * MIB,
    )
    assert margin_bytes(plan) == margin_mib * MIB


class _Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s, self.look_s = 100.0, 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("look_s", [5e-6, 60e-6])
def test_the_watch_between_units_costs_less_than_half_a_percent(
    monkeypatch: pytest.MonkeyPatch, look_s: float
) -> None:
    """However dear a look is on this machine, and however many units a step has."""
    clock = _Clock()
    monkeypatch.setattr(watch.time, "perf_counter", clock)
    eye = watch.Watch(1 << 50, wanted=Orders())

    def slow_rss() -> int:
        clock.now_s += look_s
        return 0

    monkeypatch.setattr(eye._own, "rss_bytes", slow_rss)
    began_s = clock.now_s
    for _ in range(20_000):
        eye.between_units()
        clock.now_s += 100e-6  # the unit itself
    spent_s = clock.now_s - began_s
    assert eye.looks >= 50
    assert eye.looked_s < 0.005 * spent_s
    # One that was interrupted for a second does not close the eyes for 400 s.
    monkeypatch.setattr(
        eye._own, "rss_bytes", lambda: setattr(clock, "now_s", clock.now_s + 1.0) or 0
    )
    eye()
    looks = eye.looks
    clock.now_s += 0.06
    eye.between_units()
    assert eye.looks == looks + 1
