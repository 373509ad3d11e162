"""Single runs and chains of them: randomness, neurons, tapes, checks."""

import gc
import itertools
import weakref

import pytest
import torch
from engine_checks import (
    PLAIN_TOLERANCE,
    RUNS,
    X,
    digest,
    gradients_of,
    kept_bytes,
    run_digest,
    small_branch,
)
from torch import Tensor, nn

from revedge import kernels
from revedge.engine import STRATEGIES, Branch, Chain, Coupling, Feed, Residual, Run, Unit, carry
from revedge.engine.run import Given
from revedge.engine.signal import Signal, chunks
from revedge.engine.tail import draw
from revedge.engine.vjp import Gradients
from revedge.errors import ReversibilityError
from revedge.neurons import LIFNode, ParametricLIFNode, ReversibleNode


@pytest.mark.parametrize(("kind", "dropout"), list(itertools.product(RUNS, [0.0, 0.3])))
def test_dropout_replays(kind, dropout):
    """Masks drawn in the forward pass are the ones of the recompute; without dropout the gradient differs."""
    digests = {s: run_digest(RUNS[kind], s, X, dropout=dropout) for s in STRATEGIES}
    assert len(set(digests.values())) == 1
    assert (digests["store"] == run_digest(RUNS[kind], "store", X)) == (dropout == 0.0)


@pytest.mark.parametrize("kind", RUNS)
def test_unknown_modules_go_through_autograd(kind):
    """A user's operator with randomness of its own is replayed by every strategy."""

    def noisy() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2 if kind == "coupling" else 4, 2 if kind == "coupling" else 4, 1),
            nn.Dropout(0.5),
        )

    def make(**_):
        branches = [small_branch(2 if kind == "coupling" else 4, op=noisy()) for _ in range(2)]
        return (
            Coupling(branches[:1], branches[1:])
            if kind == "coupling"
            else (Feed if kind == "feed" else Residual)(branches)
        )

    assert len({run_digest(make, s, X) for s in STRATEGIES}) == 1


@pytest.mark.parametrize("neuron", [ParametricLIFNode, ReversibleNode])
@pytest.mark.parametrize("kind", RUNS)
def test_other_neurons_in_every_run(kind, neuron):
    """Learnable leaks get gradients, and real-valued neurons are kept as floats where bits would not do."""

    def make_neuron(detach_reset):
        return (
            ReversibleNode(groups=2, dim=-3)
            if neuron is ReversibleNode
            else neuron(detach_reset=detach_reset)
        )

    x = torch.round(X * 2**14) / 2**14
    assert len({run_digest(RUNS[kind], s, x, neuron=make_neuron) for s in STRATEGIES}) == 1


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("slab_bytes", [None, 1])
def test_branches_that_read_the_stream_itself(kind, norm, slab_bytes, monkeypatch):
    """A branch that begins with a convolution, without a neuron, is not fed a stream that was overwritten."""
    monkeypatch.setattr("revedge.engine.output.LEAST_CHANNELS", 1)
    c = 2 if kind == "coupling" else 4

    def analog() -> Branch:
        spiking = small_branch(c)
        first = Unit(norm=nn.BatchNorm2d(c) if norm else None, op=nn.Conv2d(c, c, 1, bias=False))
        return Branch([first, spiking.unit_list()[1]], norm=nn.BatchNorm2d(c))

    def make(**_) -> Run:
        branches = [analog() for _ in range(4)]
        if kind == "coupling":
            run: Run = Coupling(branches[:2], branches[2:])
        else:
            run = (Feed if kind == "feed" else Residual)(branches)
        run.set_slab_bytes(slab_bytes)
        return run

    x = torch.round(X * 2**14) / 2**14
    assert len({run_digest(make, s, x) for s in STRATEGIES}) == 1


def test_second_backward_is_refused():
    """A tape serves one backward; the error says what to do."""
    run = RUNS["residual"]()
    loss = run(X.clone().requires_grad_()).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(ReversibilityError, match="forward pass again"):
        loss.backward()


def test_checksum_names_the_block():
    """A weight that changes behind autograd's back is found by what it does, and the block is named."""
    run = RUNS["residual"]()
    run.set_strategy("reverse", check="checksum")
    loss = run(X.clone().requires_grad_()).sum()
    run.branch_list()[1].unit_list()[1].op.weight.data.mul_(1.5)
    with pytest.raises(ReversibilityError, match="residual block 1"):
        loss.backward()


def test_kept_bytes_are_exact():
    """What lies on the tape of a run of 4 blocks, in units of one stream tensor of 3*2*4*8*8 floats."""
    x = torch.randn(3, 2, 4, 8, 8)
    one, bit = x.numel() * 4, x.numel() // 8
    residual = Residual([small_branch(4) for _ in range(4)])
    expected = {
        "store": 4 * (5 * one),  # x, two spike tensors, two convolution outputs
        "keep-conv": 4 * (2 * one),
        "keep-spikes": 4 * (2 * bit),
        "reverse": 4 * bit,
    }
    for strategy, size in expected.items():
        residual.set_strategy(strategy)
        _, tape = residual.run_forward(Given(x, free=False), keep=True)
        assert kept_bytes(tape) == size, strategy

    coupling = Coupling([small_branch(2) for _ in range(4)], [small_branch(2) for _ in range(4)])
    expected = {"store": 20 * one, "keep-conv": 8 * one, "keep-spikes": 4 * bit, "reverse": 0}
    for strategy, size in expected.items():
        coupling.set_strategy(strategy)
        _, tape = coupling.run_forward(Given(x, free=False), keep=True)
        assert kept_bytes(tape) == size, strategy


def _frozen_residual(branches: list[Branch], x: Tensor) -> Tensor:
    """A residual run in eval mode, written with torch's own batch norm and autograd."""

    def norm(module: nn.Module | None, y: Tensor) -> Tensor:
        assert isinstance(module, nn.BatchNorm2d)
        module.eval()
        return module(y.flatten(0, 1)).view(y.shape)

    for branch in branches:
        first, second = branch.unit_list()
        y = x
        for unit in (first, second):
            y = y if unit.norm is None else norm(unit.norm, y)
            v, spikes = torch.zeros_like(y[0]), []
            for y_t in y:
                assert unit.neuron is not None
                s, v = unit.neuron.step(y_t, v)
                spikes.append(s)
            assert unit.op is not None
            y = torch.stack([unit.op(s) for s in spikes])
        y = norm(branch.norm, y)
        x = x + y + (torch.round(y * 2**14) / 2**14 - y).detach()
    return x


def test_frozen_batch_norm_has_its_own_gradient():
    """In eval mode batch norm is a constant map; every strategy differentiates it as autograd does."""
    x = torch.round(X * 2**14) / 2**14
    # Means below zero and small variances: the second neurons fire too, so no gradient is empty.
    statistics = {"running_mean": -torch.rand(4), "running_var": 0.1 + 0.1 * torch.rand(4)}
    digests, expected, found = set(), {}, {}
    for strategy in ("plain", "store", "keep-conv", "keep-spikes", "reverse"):
        torch.manual_seed(5)
        run = Residual([small_branch(4) for _ in range(2)])
        for norm in (m for m in run.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.load_state_dict({**norm.state_dict(), **statistics})
        run.eval()
        leaf = x.clone().requires_grad_()
        if strategy == "plain":
            _frozen_residual(run.branch_list(), leaf).square().sum().backward()
            expected = gradients_of(leaf, run)
            continue
        run.set_strategy(strategy)
        run(leaf).square().sum().backward()
        found = gradients_of(leaf, run)
        digests.add(digest(found))
    assert len(digests) == 1
    for name, gradient in expected.items():
        error = float((found[name] - gradient).norm() / gradient.norm())
        assert error <= PLAIN_TOLERANCE, (name, error)


def test_no_grad_keeps_no_tape():
    """Under no_grad a run returns the same output and nothing that holds memory."""
    run: Run = RUNS["coupling"]()
    run.eval()
    with torch.no_grad():
        silent = run(X)
    out = run(X.clone().requires_grad_())
    assert not silent.requires_grad
    torch.testing.assert_close(silent, out.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("planes", [1, 3, 7])
def test_bits_are_read_at_any_chunk(planes, monkeypatch):
    """Chunks start at whole bytes and cover every plane once, also where a plane is no multiple of 8 values."""
    s = (torch.rand(5, 3, 2, 3, 3) < 0.5).float()
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", planes * 4 * 18)
    signal = Signal(s.shape, bits=kernels.pack_bits(s))
    parts = [signal.read(start, stop) for start, stop in chunks(signal, whole=False)]
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat(parts), s.flatten(0, 1), rtol=0, atol=0)


def test_nothing_stays_behind_after_a_step():
    """After backward no tape holds memory: a dropped output frees everything but gradients."""
    run = RUNS["residual"]()
    out = run(X.clone().requires_grad_())
    alive = weakref.ref(out.untyped_storage())
    out.sum().backward()
    gc.disable()
    try:
        del out
        assert alive() is None
    finally:
        gc.enable()


def test_dropout_masks_differ_from_call_to_call():
    """Every forward pass draws a new mask, and two units never share one."""
    run = RUNS["feed"](dropout=0.5)
    torch.manual_seed(0)
    first, second = run(X).detach(), run(X).detach()
    assert not torch.equal(first, second)
    drawn = [draw(Unit(dropout=0.5)).seed for _ in range(2)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chain_of_neighbors_that_keep_their_output(strategy):
    """Runs that rebuild from their own output may follow each other; none overwrites what another needs."""

    def make() -> list[Run]:
        torch.manual_seed(6)
        return [
            RUNS["residual"](),
            RUNS["residual"](),
            RUNS["coupling"](),
            RUNS["residual"](),
            RUNS["feed"](),
        ]

    digests = set()
    for chained in (True, False):
        runs = make()
        for run in runs:
            run.set_strategy(strategy, check="checksum")
            if isinstance(run, Residual | Coupling):
                run.on_grid = run is not runs[0]
        x = X.clone().requires_grad_()
        out = x
        if chained:
            chain = Chain(runs)
            out = carry(chain, x, chain.parameters())
        else:
            for run in runs:
                out = run(out)
        out.square().sum().backward()
        digests.add(digest(gradients_of(x, nn.ModuleList(runs))))
    assert len(digests) == 1


def test_a_tape_is_freed_unit_by_unit(monkeypatch):
    """While a long branch goes backward, what its later units kept is gone before its earlier ones run."""
    branch = Branch([Unit(neuron=LIFNode(), op=nn.Conv2d(4, 4, 1)) for _ in range(3)])
    feed = Feed([branch], strategy="keep-conv")
    kept: list[weakref.ref] = []
    alive_at_first: list[bool] = []
    _, tape = feed.run_forward(Given(X.clone(), free=False), keep=True)
    kept.append(weakref.ref(tape[0].units[2].pre))
    first, params = branch.unit_list()[0].neuron, LIFNode.params

    def spy(node: LIFNode) -> object:
        if node is first:
            alive_at_first.append(kept[0]() is not None)
        return params(node)

    monkeypatch.setattr(LIFNode, "params", spy)
    g = Given(torch.ones_like(X), free=True)
    feed.run_backward(X, None, tape, g, Gradients(), need_input=True)
    assert alive_at_first
    assert not any(alive_at_first)
