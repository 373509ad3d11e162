"""Every strategy against every other, and all of them against plain autograd."""

import hashlib
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revedge import kernels, models
from revedge.engine import STRATEGIES, Branch, Coupling, Feed, Residual, Run, Unit
from revedge.engine.run import Given
from revedge.engine.signal import Signal, chunks
from revedge.errors import ReversibilityError
from revedge.models.plain import plain_forward
from revedge.neurons import LIFNode, ParametricLIFNode, ReversibleNode

SMALL = {"in_shape": (2, 12, 12), "num_classes": 5, "timesteps": 3}
NETS = {
    "revsresnet": {"name": "revsresnet19", "width": 4, **SMALL},
    "ms-resnet": {"name": "ms-resnet10", "width": 6, **SMALL},
    "ms-resnet-lif-sigmoid": {
        "name": "ms-resnet10",
        "width": 6,
        "neuron": "lif",
        "surrogate": "sigmoid",
        **SMALL,
    },
    "revsresnet-plif-static": {
        "name": "revsresnet11",
        "width": 4,
        "neuron": "plif",
        "static": True,
        **SMALL,
    },
    "revsresnet24-dvs": {"name": "revsresnet24", "width": 4, **(SMALL | {"in_shape": (2, 32, 32)})},
    "ms-resnet20-dvs": {"name": "ms-resnet20", "width": 4, **(SMALL | {"in_shape": (2, 33, 31)})},
    "vgg": {"name": "vgg5", "width": 6, **SMALL},
    "vgg-reversible": {"name": "vgg5", "width": 6, "neuron": "reversible", **SMALL},
}
# float32 sums of up to n = T*B*H*W = 3*3*144 terms, twice per unit through at most 20 units, each rounded to 2**-24
# relative, in another order than autograd's: sqrt(n) * 20 * 2**-24 < 1e-4 with a factor of 2 to spare.
PLAIN_TOLERANCE = 1e-4
# The reversible neuron's x-hat is read from its input on the 2**-18 grid: 2**-19 absolute on a value of size 1.
REVERSIBLE_TOLERANCE = 2e-4


def _input(config: dict, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (
        (batch, *config["in_shape"])
        if config.get("static")
        else (config["timesteps"], batch, *config["in_shape"])
    )
    return torch.rand(shape, generator=generator) * 2


def _digest(tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _step(net: nn.Module, x: Tensor, forward=None) -> dict[str, Tensor]:
    """Gradients, input gradient included, of one training step."""
    net.train()
    net.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    logits = net(x) if forward is None else forward(net, x)
    F.cross_entropy(logits, torch.arange(logits.shape[0]) % logits.shape[1]).backward()
    return {"loss-logits": logits.detach(), **_gradients(x, net)}


def _gradients(x: Tensor, net: nn.Module) -> dict[str, Tensor]:
    """Gradients of the input and of every parameter; each must be there."""
    found = {"input": x.grad, **{name: p.grad for name, p in net.named_parameters()}}
    assert all(g is not None for g in found.values())
    return {name: g for name, g in found.items() if g is not None}


def _fresh(config: dict, strategy: str) -> models.SpikingNet:
    torch.manual_seed(0)
    return models.create(**config, strategy=strategy)


@pytest.mark.parametrize("name", NETS)
def test_all_strategies_give_the_same_bits(name):
    """SHA-256 of all gradients, the logits and all running statistics are equal for every strategy."""
    config = NETS[name]
    found = {}
    for strategy in STRATEGIES:
        net = _fresh(config, strategy)
        net.set_strategy(strategy, check="checksum")
        gradients = _step(net, _input(config))
        found[strategy] = (_digest(gradients), _digest(dict(net.named_buffers())))
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("name", NETS)
def test_store_equals_plain_autograd(name):
    """Forward bits equal those of the reference operators; gradients agree to rounding."""
    config = NETS[name]
    ours = _step(_fresh(config, "store"), _input(config))
    plain = _step(_fresh(config, "store"), _input(config), plain_forward)
    torch.testing.assert_close(ours.pop("loss-logits"), plain.pop("loss-logits"), rtol=0, atol=0)
    tolerance = REVERSIBLE_TOLERANCE if "reversible" in name else PLAIN_TOLERANCE
    largest = max(float(g.norm()) for g in plain.values())
    for key, expected in plain.items():
        error = float((ours[key] - expected).norm())
        assert error <= tolerance * max(float(expected.norm()), 1e-3 * largest), (key, error)


@pytest.mark.parametrize("name", ["revsresnet", "ms-resnet", "vgg"])
def test_running_statistics_move_once(name):
    """A step counts one batch, whatever is recomputed; the statistics are those of BatchNorm2d."""
    net = _fresh(NETS[name], "reverse")
    first = net.stem.branch_list()[0]
    conv, norm = first.unit_list()[0].op, first.norm
    assert conv is not None
    assert norm is not None
    x = _input(NETS[name])
    _step(net, x)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {str(m.num_batches_tracked) for m in norms} == {"tensor(1)"}

    reference = nn.BatchNorm2d(norm.num_features)
    reference(conv(x.flatten(0, 1)))
    torch.testing.assert_close(norm.running_mean, reference.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, reference.running_var, rtol=1e-5, atol=1e-6)


def _branch(
    channels: int, dropout: float = 0.0, op: nn.Module | None = None, neuron=LIFNode
) -> Branch:
    return Branch(
        [
            Unit(
                neuron=neuron(detach_reset=True),
                op=nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ),
            Unit(
                norm=nn.BatchNorm2d(channels),
                neuron=neuron(detach_reset=True),
                dropout=dropout,
                op=op or nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ),
        ],
        norm=nn.BatchNorm2d(channels),
    )


RUNS = {
    "feed": lambda **k: Feed([_branch(4, **k), _branch(4, **k)]),
    "residual": lambda **k: Residual([_branch(4, **k) for _ in range(3)]),
    "coupling": lambda **k: Coupling(
        [_branch(2, **k) for _ in range(2)], [_branch(2, **k) for _ in range(2)]
    ),
}


def _run_digest(make, strategy: str, x: Tensor, check: str = "checksum", **kwargs) -> str:
    torch.manual_seed(3)
    run = make(**kwargs)
    run.set_strategy(strategy, check=check)
    torch.manual_seed(4)
    x = x.clone().requires_grad_()
    (run(x) ** 2).sum().backward()
    return _digest(_gradients(x, run))


X = torch.randn(3, 2, 4, 5, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "dropout"), list(itertools.product(RUNS, [0.0, 0.3])))
def test_dropout_replays(kind, dropout):
    """Masks drawn in the forward pass are the ones of the recompute; without dropout the gradient differs."""
    digests = {s: _run_digest(RUNS[kind], s, X, dropout=dropout) for s in STRATEGIES}
    assert len(set(digests.values())) == 1
    assert (digests["store"] == _run_digest(RUNS[kind], "store", X)) == (dropout == 0.0)


@pytest.mark.parametrize("kind", RUNS)
def test_unknown_modules_go_through_autograd(kind):
    """A user's operator with randomness of its own is replayed by every strategy."""

    def noisy() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2 if kind == "coupling" else 4, 2 if kind == "coupling" else 4, 1),
            nn.Dropout(0.5),
        )

    def make(**_):
        branches = [_branch(2 if kind == "coupling" else 4, op=noisy()) for _ in range(2)]
        return (
            Coupling(branches[:1], branches[1:])
            if kind == "coupling"
            else (Feed if kind == "feed" else Residual)(branches)
        )

    assert len({_run_digest(make, s, X) for s in STRATEGIES}) == 1


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
    assert len({_run_digest(RUNS[kind], s, x, neuron=make_neuron) for s in STRATEGIES}) == 1


def test_second_backward_is_refused():
    """A tape serves one backward; the error says what to do."""
    run = RUNS["residual"]()
    loss = run(X.clone().requires_grad_()).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(ReversibilityError, match="forward pass again"):
        loss.backward()


def test_checksum_names_the_block():
    """A weight that changes between forward and backward is found, and the block is named."""
    run = RUNS["residual"]()
    run.set_strategy("reverse", check="checksum")
    loss = run(X.clone().requires_grad_()).sum()
    with torch.no_grad():
        run.branch_list()[1].unit_list()[1].op.weight.mul_(1.5)
    with pytest.raises(ReversibilityError, match="residual block 1"):
        loss.backward()


def _kept_bytes(tape: object, seen: set[int] | None = None) -> int:
    """Bytes of all large float and bit tensors that a tape holds."""
    seen = set() if seen is None else seen
    if isinstance(tape, Tensor):
        key = tape.untyped_storage().data_ptr()
        if (tape.dim() == 1 and tape.dtype == torch.float32) or key in seen:
            return 0  # statistics per channel
        seen.add(key)
        return tape.numel() * tape.element_size()
    if isinstance(tape, Signal):
        return _kept_bytes([tape.dense, tape.bits], seen)
    if isinstance(tape, list | tuple):
        return sum(_kept_bytes(item, seen) for item in tape)
    slots = getattr(tape, "__slots__", ())
    return sum(_kept_bytes(getattr(tape, slot), seen) for slot in slots)


def test_kept_bytes_are_exact():
    """What lies on the tape of a run of 4 blocks, in units of one stream tensor of 3*2*4*8*8 floats."""
    x = torch.randn(3, 2, 4, 8, 8)
    one, bit = x.numel() * 4, x.numel() // 8
    residual = Residual([_branch(4) for _ in range(4)])
    expected = {
        "store": 4 * (5 * one),  # x, two spike tensors, two convolution outputs
        "keep-conv": 4 * (2 * one),
        "keep-spikes": 4 * (2 * bit),
        "reverse": 4 * bit,
    }
    for strategy, size in expected.items():
        residual.set_strategy(strategy)
        _, tape = residual.run_forward(Given(x, free=False), keep=True)
        assert _kept_bytes(tape) == size, strategy

    coupling = Coupling([_branch(2) for _ in range(4)], [_branch(2) for _ in range(4)])
    expected = {"keep-conv": 8 * one, "keep-spikes": 4 * bit, "reverse": 0}
    for strategy, size in expected.items():
        coupling.set_strategy(strategy)
        _, tape = coupling.run_forward(Given(x, free=False), keep=True)
        assert _kept_bytes(tape) == size, strategy


def test_frozen_batch_norm_has_its_own_gradient():
    """In eval mode batch norm is a constant map; every strategy differentiates it as autograd does."""
    digests = set()
    for strategy in ("store", "keep-conv", "keep-spikes", "reverse"):
        torch.manual_seed(5)
        run = RUNS["residual"]()
        run.eval()
        run.set_strategy(strategy)
        x = X.clone().requires_grad_()
        run(x).square().sum().backward()
        digests.add(_digest(_gradients(x, run)))
    assert len(digests) == 1


def test_no_grad_keeps_no_tape():
    """Under no_grad a run returns the same output and nothing that holds memory."""
    run: Run = RUNS["coupling"]()
    run.eval()
    with torch.no_grad():
        silent = run(X)
    out = run(X.clone().requires_grad_())
    assert not silent.requires_grad
    torch.testing.assert_close(silent, out.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["revsresnet", "ms-resnet", "vgg", "vgg-reversible"])
def test_chunks_change_no_strategy(name, monkeypatch):
    """Cut into chunks of a few samples, the strategies still agree, and the gradient is that of one piece."""
    config = NETS[name]
    whole = _step(_fresh(config, "store"), _input(config))
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 4 * 8 * 12 * 12 * 2)
    found = {s: _step(_fresh(config, s), _input(config)) for s in STRATEGIES}
    assert len({_digest(g) for g in found.values()}) == 1
    scale = max(float(g.norm()) for g in whole.values())
    for key, expected in whole.items():
        # Another order of float32 sums, and convolutions of another batch: as against plain autograd.
        error = float((found["reverse"][key] - expected).norm())
        assert error <= PLAIN_TOLERANCE * max(float(expected.norm()), 1e-3 * scale), (key, error)


@pytest.mark.parametrize("planes", [1, 3, 7])
def test_bits_are_read_at_any_chunk(planes, monkeypatch):
    """Chunks start at whole bytes and cover every plane once, also where a plane is no multiple of 8 values."""
    s = (torch.rand(5, 3, 2, 3, 3) < 0.5).float()
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", planes * 4 * 18)
    signal = Signal(s.shape, bits=kernels.pack_bits(s))
    parts = [signal.read(start, stop) for start, stop in chunks(signal, whole=False)]
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat(parts), s.flatten(0, 1), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["revsresnet", "ms-resnet", "revsresnet-plif-static", "vgg"])
def test_chain_equals_its_runs_one_by_one(name):
    """A net is one autograd function; called run by run (a hook asks for it) it gives the same bits."""
    config = NETS[name]
    chained = _digest(_step(_fresh(config, "reverse"), _input(config)))
    net = _fresh(config, "reverse")
    called = []
    for run in net.runs():
        run.register_forward_hook(lambda module, args, out: called.append(module))
    assert _digest(_step(net, _input(config))) == chained
    assert called == net.runs()


def test_gradients_accumulate_and_hooks_fire_once():
    """Two backward passes add up, and a parameter's hook is called once for each."""
    config = NETS["ms-resnet"]
    net, x = _fresh(config, "reverse"), _input(config)
    once = _step(net, x)
    net = _fresh(config, "reverse")
    weight, calls = list(net.parameters())[-2], []
    weight.register_hook(lambda g: calls.append(1))
    for _ in range(2):
        net.train()
        logits = net(x)
        F.cross_entropy(logits, torch.arange(logits.shape[0]) % logits.shape[1]).backward()
    assert len(calls) == 2
    name = next(n for n, p in net.named_parameters() if p is weight)
    torch.testing.assert_close(weight.grad, once[name] + once[name], rtol=0, atol=0)


def test_nothing_stays_behind_after_a_step():
    """After backward no tape holds memory: a dropped output frees everything but gradients."""
    import gc
    import weakref

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
