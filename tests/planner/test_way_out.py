"""Where nothing fits, three things to change are named if there are three, and each of them works."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from planner_settings import THREADS
from toy_nets import FAMILIES, predictor, request

from revedge.errors import UsageError
from revedge.planner import base
from revedge.planner.cost import Prediction, predict
from revedge.planner.formulas import Formulas
from revedge.planner.request import KnownRun
from revedge.planner.result import SearchResult
from revedge.planner.search import search
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient
from revedge.planner.tried import Predict
from revedge.planner.way_out import _last

Changes = Mapping[str, Any]
_FIELDS = {
    "--strategy": "strategy",
    "--micro-batch": "micro_batch_size",
    "--slab": "slab_bytes",
    "--spans": "span_count",
    "--chunk": "chunk_bytes",
    "--update-in-backward": "update_in_backward",
}


@dataclass(frozen=True)
class World:
    """Networks, and what they take."""

    families: Mapping[str, list[str]]
    predict: Predict

    def search(self, budget_bytes: int, changes: Changes) -> SearchResult:
        """Return what a search for ``changes`` finds."""
        return search(request(budget_bytes, **changes), self.families, self.predict)


def taken(changes: Changes, offer: str) -> Changes:
    """Return what is asked for by a user who takes ``offer``."""
    match offer.split():
        case ["leave", "out", name]:
            gone = {_FIELDS[name], "membrane_count" if name == "--spans" else ""}
            return {key: value for key, value in changes.items() if key not in gone}
        case ["--optimizer", name, *_]:
            return {**changes, "optimizer": name}
        case ["--batch", value]:
            return {**changes, "batch_size": int(value)}
        case ["--model", name]:
            return {**changes, "model": name}
        case ["--timesteps", value]:
            return {**changes, "timesteps": int(value)}
        case ["--depth" | "--width" as name, value]:
            options = {**changes.get("model_options", {}), name[2:]: int(value)}
            return {**changes, "model_options": options}
    raise AssertionError(offer)


def kinds_that_work(world: World, budget_bytes: int, changes: Changes) -> int:
    """Oracle: of the kinds of change how many help, by a whole search for each at its least."""

    def works(offer: str) -> bool:
        try:
            return world.search(budget_bytes, taken(changes, offer)).plan is not None
        except UsageError:
            return False

    batch = int(changes.get("batch_size", 8))
    members = [names for names in world.families.values() if changes["model"] in names]
    kinds = [
        *([f"leave out {name}"] for name, field in _FIELDS.items() if field in changes),
        ["--optimizer sgd"],
        ["--timesteps 1"],
        [f"--depth {n}" for n in range(1, 5)],
        ["--width 4", "--width 8", "--width 16"],
        [f"--model {name}" for names in members for name in names],
        [f"--batch {batch >> n}" for n in range(1, batch.bit_length())],
    ]
    return sum(any(map(works, offers)) for offers in kinds)


def check(world: World, budget_bytes: int, changes: Changes) -> list[str]:
    """Hold that every offer works, and return them."""
    result = world.search(budget_bytes, changes)
    assert result.plan is None
    larger, _, *offers = result.way_out.split(" or ")
    size = larger.removeprefix("give --budget ").removesuffix("MiB")
    assert world.search(int(size) << 20, changes).plan
    if offers == ["take a smaller model", "smaller frames"]:
        return []
    kinds = [offer.removeprefix("leave out ").split()[0] for offer in offers]
    assert len(set(kinds)) == len(kinds)
    for offer in offers:
        assert world.search(budget_bytes, taken(changes, offer)).plan, offer
        assert ("instead of" in offer) == (offer.startswith("--opt") and "optimizer" in changes)
    return offers


@pytest.mark.parametrize("share", [0.3, 0.6, 0.75, 0.9])
@pytest.mark.parametrize(
    "changes",
    [
        {"timesteps": 64},
        {"timesteps": 2, "model_options": {"depth": 30}},
        {"timesteps": 1, "model_options": {"depth": 3}, "strategy": "store"},
        {"timesteps": 1, "micro_batch_size": 8, "optimizer": "adamw"},
        {"timesteps": 4, "model": "net5"},
        {"model": "odd3", "optimizer": "adamw"},
        {"model": "net", "timesteps": 5},
    ],
)
def test_each_way_out_works(changes: Changes, share: float) -> None:
    """What is offered where nothing fits makes the request feasible; there are three offers where three could."""
    world = World(FAMILIES, predictor((1, 1, 0)))
    changes = {"model": "net9", **changes}
    budget_bytes = int(world.search(1, changes).floor_bytes * share)
    offers = check(world, budget_bytes, changes)
    assert len(offers) == min(3, kinds_that_work(world, budget_bytes, changes))


def costly(setting: Setting) -> Prediction:
    """Chunks of a size of one's own take more, and so do spans, but where many time steps save more."""
    taken = predictor((1, 1, 0))(setting)
    more = 60 * (setting.chunk_bytes is not None) + 5 * (setting.membrane_count is not None)
    more += 30 * (setting.span_count is not None)
    return Prediction(parts={**taken.parts, "workspace_bytes": more})


@pytest.mark.parametrize("share", [0.3, 0.6, 0.75, 0.9, 0.97])
@pytest.mark.parametrize(
    "changes",
    [
        {"timesteps": 16},
        {"timesteps": 16, "span_count": 8},
        {"timesteps": 16, "span_count": 8, "membrane_count": 2},
        {"timesteps": 4, "span_count": 8},
        {"timesteps": 64, "span_count": 0},
        {"timesteps": 64, "slab_bytes": 0},
        {"timesteps": 2, "chunk_bytes": 1 << 20},
        {"timesteps": 1, "update_in_backward": False, "optimizer": "sgd"},
    ],
)
def test_what_was_fixed_can_be_given_up(changes: Changes, share: float) -> None:
    """Spans, slabs, chunks and updates that were asked for, or forbidden, are offered where that alone would do."""
    world = World(FAMILIES, costly)
    changes = {"model": "net9", **changes}
    budget_bytes = int(world.search(1, changes).floor_bytes * share)
    offers = check(world, budget_bytes, changes)
    assert len(offers) == min(3, kinds_that_work(world, budget_bytes, changes))


def test_nothing_helps_where_torch_alone_is_too_much() -> None:
    """No network is smaller than none; a byte more, and there are offers again."""

    def told(setting: Setting) -> Prediction:
        taken = predictor((1, 1, 2 << 20))(setting)
        return Prediction(parts={**taken.parts, "supervisor_bytes": 1 << 20})

    world = World(FAMILIES, told)
    short = world.search(3 << 20, {})
    assert short.way_out.endswith("(no smaller network helps: torch alone takes 3.0 MiB)")
    assert short.way_out.startswith("give --budget 4MiB or more (")
    assert "torch alone" not in world.search((3 << 20) + 1, {}).way_out


def test_of_finished_trainings_no_other_network_is_offered() -> None:
    """What they are is theirs; how much of it is trained at a time is not."""
    world = World(FAMILIES, predictor((1, 1, 0)))
    runs = (KnownRun(model="net9", model_options={}, timesteps=4, accuracy=0.5),)
    changes = {"prefer": "accuracy-per-byte", "runs": runs, "optimizer": "adamw"}
    short = world.search(world.search(1, changes).floor_bytes - 1, changes).way_out
    assert " or --optimizer sgd instead" in short
    assert not any(f"--{name} " in short for name in ("timesteps", "depth", "width", "model"))


def test_the_most_that_fits_is_offered_to_the_byte() -> None:
    """Of time steps so many that the budget is used up."""
    world = World(FAMILIES, predictor((1, 1, 0)))
    for timesteps in (1, 5, 40):
        budget_bytes = world.search(1, {"timesteps": timesteps}).floor_bytes
        assert f"--timesteps {timesteps}" in check(
            world, budget_bytes, {"timesteps": 64, "model": "net9"}
        )


@pytest.fixture(scope="module")
def real() -> Iterator[World]:
    """Return the networks of revedge, predicted by formulas."""
    with TraceClient() as tracer:
        formulas = Formulas(tracer)
        known = base.measure(THREADS)

        def told(setting: Setting) -> Prediction:
            return predict(setting, known, formulas)

        yield World(tracer.families(), told)


@pytest.mark.parametrize(
    ("changes", "share", "offered"),
    [
        ({"model": "ms-resnet18"}, 0.75, ["--depth", "--width", "--model"]),
        ({"model": "ms-resnet18", "optimizer": "adamw"}, 0.86, ["--optimizer", "--depth"]),
    ],
)
def test_real_networks_have_three_ways(
    real: World, changes: Changes, share: float, offered: list[str]
) -> None:
    """Without depth and width given, too: ``share`` of what the least takes beside torch is too little."""
    changes = {"in_shape": (3, 32, 32), **changes}
    floor = real.search(1, changes)
    assert floor.floor_setting is not None
    parts = real.predict(floor.floor_setting).parts
    bare = parts["base_bytes"] + parts["supervisor_bytes"]
    offers = check(real, bare + int((floor.floor_bytes - bare) * share), changes)
    assert len(offers) == 3
    names = [offer.split()[0] for offer in offers]
    assert [name for name in names if name in offered] == offered


def test_full_precision_is_offered_where_it_would_fit() -> None:
    """bfloat16 takes some bytes more: where only they are missing, float32 is a way out, and it works."""
    plain = predictor((1, 1, 0))

    def told(setting: Setting) -> Prediction:
        low = 5 if setting.precision == "bfloat16" else 0
        return Prediction(parts={**plain(setting).parts, "base_bytes": low})

    world = World(FAMILIES, told)
    floor = world.search(1, {"precision": "bfloat16"}).floor_bytes
    short = world.search(floor - 5, {"precision": "bfloat16"})
    assert "or --precision float32" in short.way_out
    assert world.search(floor - 5, {"precision": "float32"}).plan
    short = world.search(floor - 6, {"precision": "bfloat16"})
    assert "--precision" not in short.way_out


def test_what_is_offered_is_found_without_listing_what_is_not() -> None:
    """Of many values those are looked at that a bisection meets, and nothing is made for the others."""
    asked = list[int]()

    def peak(value: int) -> int | None:
        asked.append(value)
        return None if value < 3 else value

    values = range(1, 10**15)
    place = _last(values, peak, 12_345)
    assert place is not None
    assert values[place] == 12_345
    assert len(asked) < 60
