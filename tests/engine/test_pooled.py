"""A pool taken along by norm and neuron changes no bit, and leaves a quarter of the bits."""

import pytest
import torch
from torch import nn

from revedge.engine import Branch, Feed, Unit, fire, slab
from revedge.engine.pooled import window_of
from revedge.engine.replay import branch_forward
from revedge.engine.run import Given
from revedge.neurons import LIFNode, ParametricLIFNode

T, B, C = 4, 3, 16
POOLS = {
    "max": lambda: nn.MaxPool2d(2),
    "max-overlapping": lambda: nn.MaxPool2d(3, 2, 1),
    "mean": lambda: nn.AvgPool2d(2),
    "mean-overlapping": lambda: nn.AvgPool2d(3, 2, 1),
    "in-sequence": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Identity()),
}


def feed(pool: nn.Module, strategy: str) -> Feed:
    """Two units with a pool each, one with a norm and one without."""
    torch.manual_seed(0)
    units = [
        Unit(op=nn.Conv2d(2, C, 3, padding=1)),
        Unit(norm=nn.BatchNorm2d(C), neuron=LIFNode(), pool=pool, op=nn.Conv2d(C, C, 3, padding=1)),
        Unit(neuron=ParametricLIFNode(), pool=pool, op=nn.Conv2d(C, 5, 1)),
    ]
    return Feed([Branch(units, norm=nn.BatchNorm2d(5))], strategy=strategy)


def step(run: Feed, slab_bytes: int | None, *, frozen: bool = False) -> list[torch.Tensor]:
    """Output and all gradients."""
    run.set_slab_bytes(slab_bytes)
    run.train(not frozen)
    x = (
        torch.rand(T, B, 2, 18, 16, generator=torch.Generator().manual_seed(1)) * 2
    ).requires_grad_()
    out = run(x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    gradients = [x.grad, *(p.grad for p in run.parameters())]
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients[1:3])
    return [out.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("slab_bytes", [None, 2**15], ids=["whole", "slabs"])
@pytest.mark.parametrize("strategy", ["store", "keep-conv", "keep-spikes"])
@pytest.mark.parametrize("name", POOLS)
def test_the_bits_of_pooling_afterwards(
    name: str, strategy: str, slab_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients equal those of a tail that pools what the neuron gave out."""
    found = step(feed(POOLS[name](), strategy), slab_bytes)
    for module in (fire, slab):
        monkeypatch.setattr(module, "window_of", lambda *_, **__: None)
    expected = step(feed(POOLS[name](), strategy), slab_bytes)
    assert len(found) == len(expected)
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other)


def test_statistics_that_do_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the running statistics the tail pools, and gradients are as ever."""
    run = feed(nn.MaxPool2d(2), "keep-spikes")
    frozen = step(run, None, frozen=True)
    shape = torch.Size([T, B, C, 18, 16])
    assert window_of(run.branch_list()[0].unit_list()[1], shape, batch_stats=False) is None
    monkeypatch.setattr(fire, "window_of", lambda *_, **__: None)
    expected = step(feed(nn.MaxPool2d(2), "keep-spikes"), None, frozen=True)
    assert all(torch.equal(a, b) for a, b in zip(frozen, expected, strict=True))


def test_what_is_kept() -> None:
    """Under keep-spikes a unit with a max pool keeps a bit for each window, one with a mean a bit for each spike."""
    for pool, planes in ((nn.MaxPool2d(2), 9 * 8 + 4 * 4), (nn.AvgPool2d(2), 18 * 16 + 9 * 8)):
        run = feed(pool, "keep-spikes").train()
        saving = run.saving(keep=True)

        x = Given(torch.rand(T, B, 2, 18, 16) * 2, free=False)
        _, tape = branch_forward(run.branch_list()[0], x, saving, "feed")
        kept = [unit.signal for unit in tape.units if unit.signal is not None]
        bits = sum(signal.bits.numel() for signal in kept if signal.bits is not None)
        assert bits == T * B * C * planes // 8


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool2d(2, ceil_mode=True), (T, B, C, 9, 9)),
        (nn.MaxPool2d(2, dilation=2), (T, B, C, 9, 9)),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (T, B, C, 9, 9)),
        (nn.AvgPool2d(2, divisor_override=3), (T, B, C, 8, 8)),
        (nn.AdaptiveAvgPool2d(1), (T, B, C, 8, 8)),
        (nn.MaxPool2d(2), (64, B, C, 128, 128)),
        (nn.MaxPool2d(2), (T, B, C, 7, 9)),
    ],
    ids=[
        "ceil",
        "dilated",
        "without-padding",
        "divisor",
        "adaptive",
        "large-planes",
        "small-planes",
    ],
)
def test_what_the_tail_pools(pool: nn.Module, shape: tuple[int, ...]) -> None:
    """Windows that the kernels do not know, and planes too large or too small for them, are left to the tail."""
    unit = Unit(norm=nn.BatchNorm2d(C), neuron=LIFNode(), pool=pool)
    assert window_of(unit, torch.Size(shape), batch_stats=True) is None
