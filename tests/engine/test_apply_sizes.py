"""Sizes under `apply`: those of a plan and of setters reach every run, also of programs traced later."""

import copy
from typing import Any

import pytest
from apply_nets import X, bits, make, step
from engine_checks import NETS, fresh_net, small_branch
from torch import nn

from revedge.engine import Residual, apply, replay_of, update_in_backward
from revedge.errors import UsageError
from revedge.neurons import LIFNode, reset_net
from revedge.planner.plan import Plan

SIZES = ("slab_bytes", "span_count", "membrane_count", "chunk_bytes")
BLOCKS = ["residual", "coupled"]


def plan_of(**options: Any) -> Plan:
    """A plan; of its network and data nothing is read."""
    given: dict[str, Any] = {"strategy": "reverse", **options}
    return Plan(
        model="vgg5", data="random", in_shape=(4, 8, 8), num_classes=5, timesteps=3, batch_size=2, micro_batch_size=2,
        budget_bytes=1, predicted_peak_bytes=0, **given,
    )  # fmt: skip


@pytest.fixture
def spans(monkeypatch) -> list[int]:
    """How many spans each branch that went backward in spans with few membranes had."""
    found: list[int] = []
    made = replay_of.FewMembranes

    def spy(*args):
        found.append(len(args[4]))
        return made(*args)

    monkeypatch.setattr(replay_of, "FewMembranes", spy)
    monkeypatch.setattr("revedge.engine.output.LEAST_CHANNELS", 3)
    return found


@pytest.mark.parametrize("style", BLOCKS)
def test_the_sizes_of_a_plan_are_set(style, spans):
    """A plan, and its strategy with setters, give the same bits, and those of `store` in the same slabs and chunks."""
    net = make(style)
    plan = plan_of(slab_bytes=1, span_count=3, membrane_count=2, chunk_bytes=1)
    applied = apply(net, plan, grid=True, check="checksum")
    assert {run.slab_bytes for run in applied.runs()} == {1}
    assert "slabs of 1 B, 3 spans of time with 2 membranes, chunks of 1 B" in str(applied)
    found = {bits(net, step(net))}
    assert set(spans) == {3}
    for strategy, count in (("reverse", 3), ("reverse", None), ("store", None)):
        net = make(style)
        applied = apply(net, "keep-conv", grid=True)
        applied.set_strategy(strategy, check="checksum")
        applied.set_slab_bytes(1)
        applied.set_span_count(count, membranes=count and 2)
        applied.set_chunk_bytes(1)
        spans.clear()
        found.add(bits(net, step(net)))
        assert set(spans) == ({3} if count else set())
    assert len(found) == 1


@pytest.mark.parametrize("way", ["plan", "setters"])
def test_programs_of_later_have_the_sizes(way, spans):
    """Another mode, another state and a copy of the model are traced anew, and compute in the same sizes."""
    net = make("residual")
    sizes = {"span_count": 3, "membrane_count": 2, "chunk_bytes": 1}
    applied = apply(net, plan_of(**sizes) if way == "plan" else "reverse", grid=True)
    if way == "setters":
        net.remark = "traced before"
        step(net)
        applied.set_span_count(3, membranes=2)
        applied.set_chunk_bytes(1)
    other = copy.deepcopy(net)
    found = set()
    for each in (net, other):
        each.remark = "traced after"
        spans.clear()
        found.add(bits(each, step(each)))
        assert spans == [3] * 3
    assert len(found) == 1
    net.eval()
    step(net)
    assert {tuple(getattr(run, name) for name in SIZES) for run in applied.runs()} == {
        (None, 3, 2, 1)
    }
    applied.set_span_count(None)
    assert {run.span_count for run in applied.runs()} == {None}
    net.train()
    spans.clear()
    step(net)
    assert not spans


def test_a_net_of_the_engine_gets_the_sizes_of_a_plan_and_loses_them():
    """Its runs are set as by its own setters; undo gives back what was there before, a name sets no size."""
    net = fresh_net(NETS["ms-resnet"], "store")
    net.set_slab_bytes(7)
    applied = apply(net, "reverse")
    assert {run.slab_bytes for run in net.runs()} == {7}
    names = ("store", *["reverse"] * (len(net.runs()) - 1))
    apply(net, plan_of(span_count=4, chunk_bytes=9, strategy=names))
    assert tuple(run.strategy for run in net.runs()) == names
    assert {tuple(getattr(run, name) for name in SIZES) for run in net.runs()} == {
        (None, 4, None, 9)
    }
    applied.set_slab_bytes(5)
    applied.set_check("checksum")
    assert {(run.slab_bytes, run.check) for run in net.runs()} == {(5, "checksum")}
    applied.undo()
    assert {(run.strategy, run.slab_bytes, run.span_count) for run in net.runs()} == {
        ("store", 7, None)
    }


@pytest.mark.parametrize(
    "make_net", [lambda: make("residual"), lambda: fresh_net(NETS["vgg"], "store")]
)
def test_what_a_plan_asks_of_the_training_loop_is_told(make_net):
    """Update in backward and precision stand in the report with what to call, until it is called."""
    net = make_net()
    applied = apply(net, plan_of(update_in_backward=True, precision="bfloat16"))
    assert "call revedge.engine.update_in_backward(model, update)" in str(applied)
    assert "torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)" in str(applied)
    update_in_backward(net, lambda p, g: None)
    assert "updates in backward" not in str(applied)
    assert "autocast" not in str(apply(net, plan_of()))


def test_spans_that_change_nothing_are_told():
    """A model whose runs have no block to cut, and a strategy that keeps what spans would make again."""
    applied = apply(make("residual"), plan_of(span_count=4))
    assert "spans change nothing: nothing in this net can be cut over time" in str(applied)
    applied = apply(make("residual"), plan_of(span_count=4), grid=True)
    assert "spans change nothing" not in str(applied)
    applied.set_strategy("store")
    assert "spans change nothing: store keeps what spans of time would make again" in str(applied)


def test_strategies_can_be_set_again():
    """One for all, one per run, and never another number; after undo nothing can be set."""
    net = make("residual")
    applied = apply(net, "store", grid=True)
    expected = bits(net, step(net))
    applied.set_strategy(["store", "reverse", "keep-spikes"])
    assert [run.strategy for run in applied.report.runs] == ["store", "reverse", "keep-spikes"]
    with pytest.raises(UsageError, match="2 strategies were given for 3 runs"):
        applied.set_strategy(["store", "reverse"])
    with pytest.raises(UsageError, match="slab_bytes=0 is not a size"):
        apply(net, _Zero())
    net = make("residual")
    applied = apply(net, "store", grid=True)
    applied.set_strategy(["store", "reverse", "keep-spikes"])
    assert bits(net, step(net)) == expected
    applied.undo()
    for setter in (applied.set_slab_bytes, applied.set_chunk_bytes, applied.set_span_count):
        with pytest.raises(UsageError, match="undo was called"):
            setter(1)


class _Zero:
    strategy, slab_bytes = "store", 0


def test_a_run_of_the_users_own_in_spans_is_traced_once():
    """That it has gone backward in spans is no other state of the model."""
    own = Residual([small_branch(4)])
    own.set_span_count(3)
    own.set_chunk_bytes(1)
    net = nn.Sequential(own, LIFNode(), nn.Conv3d(2, 2, 1)).train()
    applied = apply(net, "store")
    before = applied.runs()
    for _ in range(2):
        reset_net(net)
        net(X.clone().requires_grad_()).sum().backward()
        assert own.most_spans == 3
        assert applied.runs() == before
