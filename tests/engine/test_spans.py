"""Backward in spans of time: the same bits as over all time at once, for every strategy that keeps bits."""

import pytest
import torch
from engine_checks import (
    NETS,
    digest,
    fresh_net,
    gradients_of,
    net_input,
    small_branch,
    train_step,
)
from test_update import descend, train
from torch import nn

from revedge.engine import Coupling, Residual, few_membranes, replay_of, update_in_backward
from revedge.engine.in_vain import why_nothing_to_cut
from revedge.engine.signal import Signal, planes_per_chunk
from revedge.engine.span import cut_time
from revedge.engine.unit import Branch, Unit
from revedge.errors import UsageError
from revedge.neurons import LIFNode, ParametricLIFNode

STEPS = 7
# Couplings and residual nets, two and three units a branch, attention, IF, LIF and learnt leaks, images and events.
CUT = [
    "ms-resnet",
    "ms-resnet-lif-sigmoid",
    "revsresnet-plif-static",
    "revsresnet24-dvs",
    "spikingformer-static-if",
    "revsformer",
]


@pytest.fixture
def cuts(monkeypatch) -> list[int]:
    """How many spans each branch that went backward in spans had."""
    found: list[int] = []

    def spy(kind):
        def made(*args):
            found.append(len(args[4]))
            return kind(*args)

        return made

    for name in ("SpanReplay", "FewMembranes"):
        monkeypatch.setattr(replay_of, name, spy(getattr(replay_of, name)))
    return found


def config_of(name: str) -> dict:
    return NETS[name] | {"timesteps": STEPS}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("batch", [1, 3])
def test_spans_change_no_bit(name, batch, cuts, monkeypatch):
    """Gradients, logits and running statistics of whole and cut, of store, keep-spikes and reverse are equal."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 1)  # a chunk is a plane or a few
    config = config_of(name)
    found, numbers = set(), {"store": [2], "keep-spikes": [None, 3], "reverse": [1, 2, STEPS + 2]}
    for strategy, counts in numbers.items():
        for count in counts:
            net = fresh_net(config, strategy)
            net.set_strategy(strategy, check="checksum")
            net.set_span_count(count)
            cuts.clear()
            gradients = train_step(net, net_input(config, batch))
            found.add((digest(gradients), digest(dict(net.named_buffers()))))
            expected = {None: set(), 1: set(), 2: {2}, 3: {3}, STEPS + 2: {STEPS}}[count]
            assert set(cuts) == (expected if strategy != "store" else set())
    assert len(found) == 1


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("batch", [1, 3])
def test_few_membranes_change_no_bit(name, batch, cuts, monkeypatch):
    """One membrane at a time to all of them, spans of one step to four: the gradients of `store`, and its buffers."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 1)
    config = config_of(name)
    found = set()
    ways: list[tuple[str, int | None, int | None]] = [("store", None, None), ("keep-spikes", 7, 2)]
    ways += [
        ("reverse", STEPS, 1),
        ("reverse", STEPS, 3),
        ("reverse", STEPS, STEPS),
        ("reverse", 2, 1),
    ]
    for strategy, spans, membranes in ways:
        net = fresh_net(config, strategy)
        net.set_strategy(strategy, check="checksum")
        net.set_span_count(spans, membranes=membranes)
        cuts.clear()
        gradients = train_step(net, net_input(config, batch))
        found.add((digest(gradients), digest(dict(net.named_buffers()))))
        assert set(cuts) == (set() if spans is None else {spans})
    assert len(found) == 1


@pytest.mark.parametrize("name", ["ms-resnet", "revsresnet-plif-static"])
def test_chunks_are_alike_under_all_strategies(name, cuts):
    """A size of chunks that is asked for cuts forward and backward pass, and lets spans be short."""
    config = config_of(name)
    found = set()
    for strategy, spans, membranes in (
        ("store", None, None),
        ("reverse", 3, None),
        ("reverse", 3, 2),
    ):
        net = fresh_net(config, strategy)
        net.set_chunk_bytes(1)
        net.set_span_count(spans, membranes=membranes)
        cuts.clear()
        found.add(digest(train_step(net, net_input(config, 3))))
        assert set(cuts) == (set() if spans is None else {3})
        net.set_chunk_bytes(None)
        cuts.clear()
        train_step(net, net_input(config, 3))
        assert not cuts  # these nets fit into one chunk of 2 MiB
    assert len(found) == 1


def test_no_more_membranes_stand_than_asked_for(monkeypatch):
    """In a sweep back, of each neuron but the first; and its spikes are those of one span."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 1)
    most = 0

    class Spy(few_membranes.FewMembranes):
        def _back(self, level, span, gradients):
            nonlocal most
            alive = {id(v) for at in [*self.before.values(), self.at_hand] for v in at.values()}
            most = max(most, len(alive))
            assert all(kept.signal is None for kept in self.tape.units)
            assert all(s.planes == 2 * (span.last - span.first) for s in self.spikes.values())
            return super()._back(level, span, gradients)

    monkeypatch.setattr(replay_of, "FewMembranes", Spy)
    for count in (1, 2, 4):
        most = 0
        run = Residual([branch()])
        run.set_span_count(16, membranes=count)
        run(torch.randn(16, 2, 4, 5, 7, requires_grad=True)).sum().backward()
        assert most == count


@pytest.mark.parametrize("name", ["ms-resnet", "revsformer"])
def test_slabs_and_spans_together(name, cuts, monkeypatch):
    """A span is computed by the slabs of the whole."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 1)
    monkeypatch.setattr("revedge.engine.output.LEAST_CHANNELS", 3)
    found = set()
    for count, membranes in ((None, None), (4, None), (4, 2)):
        net = fresh_net(config_of(name), "reverse")
        net.set_slab_bytes(1)
        net.set_span_count(count, membranes=membranes)
        found.add(digest(train_step(net, net_input(config_of(name)))))
    assert cuts
    assert len(found) == 1


@pytest.mark.parametrize("planes", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_no_chunk_lies_in_two_spans(planes, batch, cuts, monkeypatch):
    """Spans end where chunks of all operators do, and are no more than asked for."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", planes * 16 * 6 * 8 * 4)
    run = Residual([branch()], strategy="reverse")
    x = torch.randn(24, batch, 4, 6, 8)
    assert planes_per_chunk(Signal(x.shape, dense=x)) == planes
    for count in (1, 2, 5, 24, 99):
        spans = cut_time(run.branch_list()[0], x, count)
        assert [s.last for s in spans[:-1]] == [s.first for s in spans[1:]]
        assert (spans[0].first, spans[-1].last) == (0, 24)
        assert all(s.first * batch % planes == 0 and s.index == i for i, s in enumerate(spans))
        assert len(spans) <= count
    run.set_span_count(24)
    run(x.requires_grad_()).sum().backward()
    assert cuts == [24 // {1: 1, 2: 1 if batch == 2 else 2, 5: 5}[planes] + (planes == 5)]


def branch(**options) -> Branch:
    return small_branch(4, **options)


def without_neuron() -> Branch:
    conv = nn.Conv2d(4, 4, 1, bias=False)
    return Branch([Unit(op=conv), *branch().unit_list()[1:]], norm=nn.BatchNorm2d(4))


def with_norm_first() -> Branch:
    first = Unit(norm=nn.BatchNorm2d(4), neuron=LIFNode(), op=nn.Conv2d(4, 4, 3, padding=1))
    return Branch([first, *branch().unit_list()[1:]], norm=nn.BatchNorm2d(4))


def pooled_close() -> Branch:
    return Branch(branch().unit_list(), norm=nn.BatchNorm2d(4), pool=nn.AvgPool2d(3, 1, 1))


def pooled_inside() -> Branch:
    conv, pool = nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1)
    return Branch([Unit(neuron=LIFNode(), pool=pool, op=conv)], norm=nn.BatchNorm2d(4))


def twice_the_same() -> Branch:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    units = [Unit(neuron=LIFNode(), op=conv), Unit(neuron=LIFNode(), op=conv)]
    return Branch(units, norm=nn.BatchNorm2d(4))


def three_units() -> Branch:
    units = [Unit(neuron=ParametricLIFNode(), op=nn.Conv2d(4, 4, 3, padding=1)) for _ in range(3)]
    return Branch(units, norm=nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    ("make", "is_cut"),
    [
        (with_norm_first, True),
        (three_units, True),
        (twice_the_same, False),
        (pooled_close, False),
        (pooled_inside, False),
        (lambda: branch(op=nn.Conv2d(4, 4, 1, groups=2)), True),
        (lambda: branch(op=nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())), False),
        (lambda: branch(dropout=0.5), False),
        (without_neuron, False),
    ],
)
@pytest.mark.parametrize("kind", ["residual", "coupling"])
def test_what_is_cut_and_what_stays_whole(kind, make, is_cut, cuts, monkeypatch):
    """A branch that cannot be cut goes back over all time, and its gradients are the same either way."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 1)
    found = set()
    for count, membranes in ((None, None), (4, None), (4, 2)):
        torch.manual_seed(0)
        run = Residual([make(), make()]) if kind == "residual" else Coupling([make()], [make()])
        channels = 4 if kind == "residual" else 8
        run.set_span_count(count, membranes=membranes)
        x = torch.randn(STEPS, 2, channels, 5, 7, requires_grad=True)
        (run(x) ** 2).sum().backward()
        found.add(digest(gradients_of(x, run)))
        assert (why_nothing_to_cut([run]) is None) == is_cut
    assert bool(cuts) == is_cut
    assert len(found) == 1


def test_frozen_statistics_stay_whole(cuts, monkeypatch):
    """In eval mode there are no sums over time to be found."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 1)
    run = Residual([branch()]).eval()
    run.set_span_count(7)
    run(torch.randn(STEPS, 2, 4, 5, 7, requires_grad=True)).sum().backward()
    assert not cuts


@pytest.mark.parametrize("name", ["ms-resnet", "revsresnet"])
def test_training_in_spans_gives_the_same_weights(name, cuts, monkeypatch):
    """Some steps, updated in the backward pass, too: a weight that changes is not read again."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 1)
    config = config_of(name)
    expected = digest(train(fresh_net(config, "reverse"), net_input(config), steps=3))
    for updates, membranes in ((False, None), (True, None), (True, 2)):
        net = fresh_net(config, "reverse")
        net.set_span_count(4, membranes=membranes)
        update_in_backward(net, descend if updates else None)
        assert digest(train(net, net_input(config), steps=3)) == expected
        assert all((p.grad is None) == updates for p in net.parameters())
    assert cuts


def test_there_is_one_span_at_least():
    """0 spans are none."""
    with pytest.raises(UsageError, match="span_count=0"):
        Residual([branch()]).set_span_count(0)


def test_membranes_are_one_at_least_and_of_spans():
    """0 membranes, membranes without spans and chunks of 0 bytes are errors that say what to give."""
    run = Residual([branch()])
    with pytest.raises(UsageError, match="membranes=0 are too few to go on from; use 1"):
        run.set_span_count(4, membranes=0)
    with pytest.raises(UsageError, match="membranes=2 are those of spans of time; give span_count"):
        run.set_span_count(None, membranes=2)
    with pytest.raises(UsageError, match="chunk_bytes=0 is not a size"):
        run.set_chunk_bytes(0)
