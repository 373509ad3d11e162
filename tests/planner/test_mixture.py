"""A strategy for each run: the choice is that of trying every combination."""

import dataclasses
import itertools
import random

import pytest

from revedge.allocator import page_bytes
from revedge.planner.form.shape import net_of
from revedge.planner.form.step import evaluate
from revedge.planner.mixture import Part, climbed, fastest_first, least_first
from revedge.planner.plan import STRATEGIES
from revedge.planner.setting import Setting
from revedge.planner.trace_child import geometry
from revedge.planner.way import TIME_FACTORS


def test_no_combination_that_fits_is_faster() -> None:
    """Drawn runs, three strategies, budgets from too small to roomy."""
    draw, fitting = random.Random(4), 0
    for _ in range(200):
        names, runs = ("a", "b", "c"), draw.randint(1, 5)
        parts = {
            name: [
                Part(draw.randint(-5, 30), draw.randint(0, 60), draw.random()) for _ in range(runs)
            ]
            for name in names
        }
        limit = draw.randint(20, 150)

        def seconds_if_it_fits(
            choice: tuple[str, ...], parts: dict[str, list[Part]] = parts, limit: int = limit
        ) -> float | None:
            live, time = 10, 0.0
            for run, name in enumerate(choice):
                if live + parts[name][run].top > limit:
                    return None
                live += parts[name][run].kept
                time += parts[name][run].time
            return time

        every = map(seconds_if_it_fits, itertools.product(names, repeat=runs))
        best = min((time for time in every if time is not None), default=None)
        found = fastest_first(parts, 10, limit)
        assert (seconds_if_it_fits(found[0]) if found else None) == best
        fitting += best is not None
    assert 50 < fitting < 200


def test_no_combination_takes_less() -> None:
    """Drawn runs, three strategies: the first choice has the least peak of all."""
    draw, mixtures = random.Random(6), 0
    for _ in range(200):
        names, runs = ("a", "b", "c"), draw.randint(1, 5)
        parts = {
            name: [Part(draw.randint(-5, 30), draw.randint(0, 60), 1.0) for _ in range(runs)]
            for name in names
        }

        def peak(choice: tuple[str, ...], parts: dict[str, list[Part]] = parts) -> int:
            live, most = 10, 0
            for run, name in enumerate(choice):
                most = max(most, live + parts[name][run].top)
                live += parts[name][run].kept
            return most

        found = least_first(parts, 10)
        best = min(map(peak, itertools.product(names, repeat=runs)))
        assert peak(found[0]) == best
        mixtures += best < min(peak((name,) * runs) for name in names)
    assert 50 < mixtures < 200


@pytest.mark.parametrize("model", ["vgg5", "resnet18", "preact-resnet18", "revsformer-2-256"])
def test_runs_of_a_network_add_up_to_its_peak(model: str) -> None:
    """What runs keep and their tops, told under one strategy for all, give the peak of every mixture."""
    setting = Setting(
        model=model,
        model_options={"width": 16},
        in_shape=(2, 33, 31),
        num_classes=10,
        timesteps=3,
        batch_size=4,
        micro_batch_size=4,
        strategy="store",
    )
    net = net_of(geometry(setting))

    def told(strategy: str | tuple[str, ...]):  # type: ignore[no-untyped-def]
        return evaluate(net, dataclasses.replace(setting, strategy=strategy), page_bytes())

    uniform = {name: told(name) for name in STRATEGIES}
    draw = random.Random(2)
    for _ in range(20):
        names = tuple(draw.choice(STRATEGIES) for _ in net.runs)
        live, peak = uniform["store"].start_bytes, 0
        for run, name in enumerate(names):
            kept, top = uniform[name].runs[run]
            live, peak = live + kept, max(peak, live + top)
        assert peak == told(names).peak_bytes


def test_where_runs_are_not_known_each_is_tried() -> None:
    """From the last run on, the fastest that fits; two that have to stay end it."""
    asked = list[tuple[str, ...]]()

    def fits(names):  # type: ignore[no-untyped-def]
        asked.append(tuple(names))
        return sum(TIME_FACTORS["reverse"] - TIME_FACTORS[name] for name in names) < 0.5

    found = climbed(["reverse"] * 4, ["keep-conv", "store"], fits)
    assert found == ["reverse", "reverse", "reverse", "store"]
    assert asked[0] == ("reverse", "reverse", "reverse", "store")
    assert all(names[0] == "reverse" for names in asked)
    assert climbed(["reverse"], ["store"], fits) == ["reverse"]
