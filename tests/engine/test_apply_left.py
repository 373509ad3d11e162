"""What `apply` leaves alone: such parts run as they were written, and the report says why."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from apply_nets import Block, X, assert_close, conv
from torch import Tensor, nn
from torch.nn import functional as F

from revedge.engine import apply
from revedge.engine.adopt import forward
from revedge.errors import UsageError
from revedge.neurons import LIFNode, ReversibleNode, reset_net


class _Wrapped(nn.Module):
    """A module with a forward of its own around a branch-free block."""

    def __init__(self, forward: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.calls = 0
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the test says."""
        return self.function(self, x)


class _Double(torch.autograd.Function):
    """Twice the input, with another gradient than autograd would find."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        return g[0] * 5


double = _Double.apply


def _branches(self: _Wrapped, x: Tensor) -> Tensor:
    return x * 2 if float(x.detach().mean()) > 100 else x + 1


def _no_grad(self: _Wrapped, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
    return x + y


def _autocast(self: _Wrapped, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.parts[0](x.flatten(0, 1)).float().view(x.shape)


def _counts(self: _Wrapped, x: Tensor) -> Tensor:
    self.calls += 1
    return x * 2


def _python_chance(self: _Wrapped, x: Tensor) -> Tensor:
    return x * 2 if random.random() < 2 else x


def _own_tensor(self: _Wrapped, x: Tensor) -> Tensor:
    total = torch.zeros(())
    total += 1
    return x * total


def _own_function(self: _Wrapped, x: Tensor) -> Tensor:
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
    return nn.Sequential(Block(4), _Wrapped(odd, conv(4, 4)), Block(4)).train()


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
        assert_close(_step(net), _step(plain))
    assert isinstance(net[1], _Wrapped)
    assert net[1].calls == (2 if name == "counter" else 0)
    if name != "python's chance":
        assert random.getstate() == state


def _step(net: nn.Module) -> dict[str, Tensor]:
    """As `step`, without the convolution that most odd modules do not use."""
    reset_net(net)
    net.zero_grad(set_to_none=True)
    x = X.clone().requires_grad_()
    out = net(x)
    out.square().sum().backward()
    assert x.grad is not None
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"loss-out": out.detach(), "input": x.grad, **found}


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
    assert_close(_step(net), _step(plain))
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


def _twice(self: _Wrapped, x: Tensor) -> Tensor:
    return self.parts[0](self.parts[0](x))


NEURONS = {
    "single step": (lambda: LIFNode(step_mode="s"), "step_mode"),
    "membranes": (lambda: LIFNode(store_v_seq=True), "store_v_seq"),
    "subclass": (lambda: type("Mine", (LIFNode,), {})(), "of the user's own"),
    "twice": (lambda: _Wrapped(_twice, LIFNode()), "2 calls in one forward"),
    "reversible": (lambda: ReversibleNode(groups=2, dim=-3), "2**-18"),
}


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_that_a_run_cannot_hold(name):
    """They run under autograd exactly as before."""
    make, why = NEURONS[name]

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(Block(4), make())

    net, plain = build(), build()
    applied = apply(net, "keep-spikes")
    assert sum(run.neurons for run in applied.report.runs) == 2
    assert why in applied.report.left[0][1]
    assert_close(_step(net), _step(plain))


def test_reversible_neurons_with_the_grid():
    """With grid=True they may be in a run, behind the norm whose output is rounded."""
    torch.manual_seed(0)
    net = nn.Sequential(
        conv(4, 4), nn.BatchNorm2d(4), nn.Unflatten(0, (3, 2)), ReversibleNode(groups=2, dim=-3)
    )
    net[2] = _Unfold()
    applied = apply(net, "invert", grid=True)
    assert [(run.neurons, run.strategy) for run in applied.report.runs] == [(1, "invert")]
    assert net(X.flatten(0, 1)).shape == X.shape


class _Unfold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (3, 2))


LAYERS = {
    "norm without weight": lambda: nn.BatchNorm2d(4, affine=False),
    "instance norm": lambda: nn.InstanceNorm2d(4),
    "in place": lambda: nn.ReLU(inplace=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_a_run_cannot_hold_part_two_runs(name):
    """They stay where they are, between runs."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif1, self.conv, self.odd, self.lif2 = (
                LIFNode(),
                conv(4, 4),
                LAYERS[name](),
                LIFNode(),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.odd(self.conv(self.lif1(x).flatten(0, 1)))
            return self.lif2(y.unflatten(0, x.shape[:2]) * 3)

    torch.manual_seed(0)
    net = Net()
    torch.manual_seed(0)
    plain = Net()
    applied = apply(net, "keep-spikes")
    assert [run.neurons for run in applied.report.runs] == [1, 1]
    assert_close(_step(net), _step(plain))


def test_a_reshape_that_mixes_is_refused():
    """Sizes that the forward names are compared with those that there are."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif = conv(4, 4), LIFNode()

        def forward(self, x: Tensor) -> Tensor:
            t, b, c, h, w = x.shape
            return self.lif(self.conv(x.flatten(0, 1)).reshape(t, b, c, h * 2, w // 2))

    net = Net()
    assert net(X).shape == (3, 2, 4, 16, 4)
    reset_net(net)
    apply(net)
    with pytest.raises(UsageError, match="more than joining or parting T and B"):
        net(X)


def test_left_on_request():
    """Submodules that are named are called as they are."""
    torch.manual_seed(0)
    net = nn.Sequential(Block(4), Block(4))
    applied = apply(net, leave=["1"])
    assert [run.first for run in applied.report.runs] == ["0.lif1"]
    assert "left on request (1)" in str(applied)
    called = []
    net[1].register_forward_hook(lambda *_: called.append(1))
    net(X)
    assert called == [1]


def test_other_precisions_run_as_written():
    """A model in float64 (for gradcheck, say) or bfloat16 is the user's own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), LIFNode(), nn.Linear(4, 2))
    apply(net)
    net.double()
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    assert net(x).dtype == torch.float64
    reset_net(net)
    assert net.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    net.float()
    reset_net(net)
    assert net(x.float()).dtype == torch.float32


def test_containers_come_back_as_they_were():
    """A forward may return lists and dictionaries."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(4)

        def forward(self, events: dict[str, Tensor]) -> dict[str, Any]:
            y = self.block(events["x"])
            return {"all": [y, (F.relu(y), 3)]}

    net = Net()
    assert apply(net).report.left == ()
    out = net({"x": X})
    assert type(out) is dict
    assert type(out["all"]) is list
    out["all"].append(1)
    assert out["all"][1][1] == 3


def test_a_second_derivative_is_refused():
    """A run's gradient is not differentiable again, and says so."""
    net = nn.Sequential(nn.Linear(3, 4), LIFNode(), nn.Linear(4, 2))
    apply(net)
    x = torch.randn(2, 3, 3, requires_grad=True)
    for loss in (lambda y: y.sum(), lambda y: y.square().sum()):
        reset_net(net)
        with pytest.raises(UsageError, match=r"second derivatives.* leave the module out of apply"):
            torch.autograd.grad(loss(net(x)), x, create_graph=True)


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
        assert_close(_step(net), _step(plain))
    assert traced == []
    assert type(net.counter) is _Remembers
    assert [run.first for run in applied.report.runs] == ["block.lif1"]
    left = dict(applied.report.left)
    assert ("_Around" in left) == reads
    assert not reads or "it reads 'calls' of a _Remembers" in left["_Around"]
    net.eval()
    assert_close(_step(net), _step(plain.eval()))
