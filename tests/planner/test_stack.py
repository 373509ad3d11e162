"""Of a deep stack few blocks are traced, and the answer is that of tracing all, to the byte."""

import dataclasses
import random

import pytest

from revedge.planner.plan import OPTIMIZERS, STRATEGIES
from revedge.planner.setting import Setting
from revedge.planner.stack import shallower
from revedge.planner.trace_child import trace

MODELS = ["revsresnet16", "ms-resnet10", "ms-resnet20", "spikingformer-2-256", "revsformer-2-256"]


def drawn(count: int) -> list[Setting]:
    """Deep nets of every kind that has stacks, from a seeded generator."""
    draw, found = random.Random(1), list[Setting]()
    for index in range(count):
        batch = draw.choice([1, 3, 8, 32])
        micro = batch if draw.random() < 0.6 else 1
        found.append(
            Setting(
                model=MODELS[index % len(MODELS)],
                model_options={"depth": draw.randint(16, 30)},
                in_shape=(2, 32, 32),
                num_classes=10,
                static=draw.random() < 0.3,
                timesteps=draw.choice([1, 2, 5, 12]),
                batch_size=batch,
                micro_batch_size=micro,
                strategy=draw.choice(STRATEGIES),
                slab_bytes=draw.choice([None, 8 << 20, 1 << 18]),
                update_in_backward=micro == batch and draw.random() < 0.5,
                optimizer=draw.choice(OPTIMIZERS),
            )
        )
    return found


@pytest.mark.parametrize("setting", drawn(10), ids=lambda s: f"{s.model}-{s.strategy}")
def test_blocks_left_out_are_counted_to_the_byte(setting: Setting) -> None:
    """Peak, its parts, weights, optimizer and work are those of the whole net."""
    run, left_out = shallower(setting)
    assert left_out > 0
    assert run.model_options["depth"] < setting.model_options["depth"]
    short, whole = trace(setting), trace(setting, thorough=True)
    assert short.pop("operations") < whole.pop("operations")
    # Autograd adds gradients of a second micro-batch in place, or not; a last chunk is smaller than others.
    assert short.pop("moved_bytes") == pytest.approx(whole.pop("moved_bytes"), rel=0.1)
    assert short == whole


def test_what_has_no_stack_is_traced_whole() -> None:
    """A net whose depth is not asked for, and one without equal blocks, lose none."""
    deep = drawn(1)[0]
    for model, options in (
        ("ms-resnet34", {}),
        ("vgg11", {"depth": 40}),
        ("resnet18", {"depth": 40}),
        ("ms-resnet10", {"depth": 6}),
    ):
        setting = Setting(
            model=model,
            model_options=options,
            in_shape=(2, 32, 32),
            num_classes=10,
            timesteps=2,
            batch_size=1,
            micro_batch_size=1,
            strategy="reverse",
        )
        assert shallower(setting) == (setting, 0)
    assert shallower(deep)[1] > 0


def test_a_very_deep_net_costs_what_a_shallow_one_does() -> None:
    """Thousands of blocks are answered from five, and what they take is a line in their number."""
    setting = drawn(2)[1]
    found = [
        trace(dataclasses.replace(setting, model_options={"depth": depth}))
        for depth in (1000, 2000, 3000)
    ]
    assert found[0]["operations"] == found[1]["operations"] == found[2]["operations"]
    first, second, third = (each["peak_bytes"] for each in found)
    assert third - second == second - first > 0
