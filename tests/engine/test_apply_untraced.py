"""Forwards that `apply` cannot trace: they are called as they are, and what lies inside them becomes runs."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from apply_nets import Block, Wrapped, X, assert_close, conv, step_of_used
from torch import Tensor, nn

from revedge.engine import apply
from revedge.engine.adopt import forward
from revedge.neurons import LIFNode, reset_net


class _Double(torch.autograd.Function):
    """Twice the input, with another gradient than autograd would find."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        return g[0] * 5


double = _Double.apply


def _branches(self: Wrapped, x: Tensor) -> Tensor:
    return x * 2 if float(x.detach().mean()) > 100 else x + 1


def _no_grad(self: Wrapped, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
    return x + y


def _autocast(self: Wrapped, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.parts[0](x.flatten(0, 1)).float().view(x.shape)


def _counts(self: Wrapped, x: Tensor) -> Tensor:
    self.calls += 1
    return x * 2


def _python_chance(self: Wrapped, x: Tensor) -> Tensor:
    return x * 2 if random.random() < 2 else x


def _own_tensor(self: Wrapped, x: Tensor) -> Tensor:
    total = torch.zeros(())
    total += 1
    return x * total


def _own_function(self: Wrapped, x: Tensor) -> Tensor:
    return double(x)  # pyright: ignore[reportReturnType]


ODD = {
    "branching": (_branches, "control flow|TraceError|float"),
    "no_grad": (_no_grad, "switches autograd"),
    "autocast": (_autocast, "switches autocast"),
    "counter": (_counts, "writes the attribute 'calls'"),
    "python's chance": (_python_chance, "draws random numbers"),
    "a tensor of its own": (_own_tensor, "makes a tensor of its own"),
    "a function of its own": (_own_function, "autograd function of its own"),
}


def _build(odd: Callable[..., Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(4), Wrapped(odd, conv(4, 4)), Block(4)).train()


@pytest.mark.parametrize("name", ODD)
def test_a_forward_that_cannot_be_traced_is_called_as_it_is(name):
    """The blocks around it become runs; results and gradients are those of the plain net, call after call."""
    odd, why = ODD[name]
    net, plain = _build(odd), _build(odd)
    applied = apply(net, "keep-spikes")
    assert sum(run.neurons for run in applied.report.runs) == 4
    (left,) = applied.report.left
    assert left[0] == "1"
    assert any(one in left[1] for one in why.split("|")), left
    state = random.getstate()
    for _ in range(2):
        assert_close(step_of_used(net), step_of_used(plain))
    assert isinstance(net[1], Wrapped)
    assert net[1].calls == (2 if name == "counter" else 0)
    if name != "python's chance":
        assert random.getstate() == state


class _Steps(nn.Module):
    """A root that cannot be traced, over parts that can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(4), nn.Sequential(Block(4), Block(4))

    def forward(self, x: Tensor) -> Tensor:
        """Branch on values."""
        return self.second(self.first(x)) if float(x.detach().sum()) < 1e9 else x


def test_parts_of_an_untraceable_model_become_runs():
    """Its submodules are taken one by one; undo reaches them."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return _Steps()

    net, plain = build(), build()
    applied = apply(net, "reverse", grid=False)
    assert [run.first for run in applied.report.runs] == [
        "first.lif1",
        "second.0.lif1",
        "second.1.lif1",
    ]
    assert applied.report.left[0][0] == "_Steps"
    assert_close(step_of_used(net), step_of_used(plain))
    applied.undo()
    assert not [module for module in net.modules() if "forward" in module.__dict__]
    assert not [m for m in net.modules() if isinstance(m, LIFNode) and m.v is not None]


class _Checks(nn.Module):
    """Looks at the number of axes, as many models do."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(4)

    def forward(self, x: Tensor, scale: float | None = None, *, double: bool = False) -> Tensor:
        """Return the block's output."""
        if x.dim() != 5 or len(x.shape) != 5:
            raise ValueError("want [T, B, C, H, W]")
        y = self.block(x) * 2 if double else self.block(x)
        return y if scale is None else y * scale


def test_an_example_tells_the_number_of_axes():
    """Without it the inner block still becomes a run; options of the forward are followed."""
    torch.manual_seed(0)
    net = _Checks()
    assert apply(net).report.left[0][0] == "_Checks"
    reset_net(net)
    applied = apply(net, example=X)
    assert applied.report.left == ()
    plain = net(X).detach()
    reset_net(net)
    torch.testing.assert_close(net(X, 3.0, double=True), 6 * plain)
    reset_net(net)
    torch.testing.assert_close(net(X, scale=0.5), plain / 2)


class _Remembers(nn.Module):
    """Counts its calls, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        self.calls += 1
        return x


class _Around(nn.Module):
    """A block and what counts; ``reads`` multiplies by the count, which a trace knows as a number."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.block, self.counter, self.reads = Block(4), _Remembers(), reads

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.counter(self.block(x))
        return y * self.counter.calls if self.reads else y


@pytest.mark.parametrize("leave", [(), ("counter",)])
@pytest.mark.parametrize("reads", [False, True])
def test_what_is_called_as_it_is_may_remember_things(reads, leave, monkeypatch):
    """It is traced once; a forward that reads them is called as it is, too, because they change as it runs."""
    torch.manual_seed(0)
    net = _Around(reads=reads)
    torch.manual_seed(0)
    plain = _Around(reads=reads)
    applied = apply(net, "keep-spikes", leave=leave)
    traced: list[str] = []
    made = forward.trace
    monkeypatch.setattr(forward, "trace", lambda *args: (traced.append("again"), made(*args))[1])
    for _ in range(3):
        assert_close(step_of_used(net), step_of_used(plain))
    assert traced == []
    assert type(net.counter) is _Remembers
    assert [run.first for run in applied.report.runs] == ["block.lif1"]
    left = dict(applied.report.left)
    assert ("_Around" in left) == reads
    assert not reads or "it reads 'calls' of a _Remembers" in left["_Around"]
    net.eval()
    assert_close(step_of_used(net), step_of_used(plain.eval()))


class _Positions(nn.Module):
    """A block on what a buffer is added to."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(4)
        self.register_buffer("positions", torch.linspace(-1.0, 1.0, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return self.block(x + self.positions)


def test_a_buffer_is_no_tensor_made_in_forward():
    """A forward that reads one is traced; another buffer in its place is seen."""
    torch.manual_seed(0)
    net = nn.Sequential(_Positions(), Block(4))
    plain = nn.Sequential(_Positions(), Block(4))
    plain.load_state_dict(net.state_dict())
    assert apply(net, "keep-spikes").report.left == ()
    for value in (1.0, 3.0):
        for each in (net, plain):
            position = each[0]
            assert isinstance(position, _Positions)
            position.positions = position.positions * value
        assert_close(step_of_used(net), step_of_used(plain))
