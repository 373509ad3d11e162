"""What `apply` leaves alone in a forward that it can trace: such parts run as written, and the report says why."""

from typing import Any

import pytest
import torch
from apply_nets import Block, Wrapped, X, assert_close, conv, step_of_used
from torch import Tensor, nn
from torch.nn import functional as F

from revedge.engine import apply
from revedge.errors import UsageError
from revedge.neurons import LIFNode, ReversibleNode, reset_net


def _twice(self: Wrapped, x: Tensor) -> Tensor:
    return self.parts[0](self.parts[0](x))


NEURONS = {
    "single step": (lambda: LIFNode(step_mode="s"), "step_mode"),
    "membranes": (lambda: LIFNode(store_v_seq=True), "store_v_seq"),
    "subclass": (lambda: type("Mine", (LIFNode,), {})(), "of the user's own"),
    "twice": (lambda: Wrapped(_twice, LIFNode()), "2 calls in one forward"),
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
    assert_close(step_of_used(net), step_of_used(plain))


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
    assert_close(step_of_used(net), step_of_used(plain))


def test_a_layer_that_is_called_with_options_is_left():
    """A run would call it with the planes alone, and another size would come of it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif, self.lif2 = LIFNode(), LIFNode()
            self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(self.lif(x).flatten(0, 1), output_size=[16, 16])
            return self.lif2(y.unflatten(0, x.shape[:2]))

    torch.manual_seed(0)
    net = Net()
    torch.manual_seed(0)
    plain = Net()
    applied = apply(net, "keep-spikes")
    assert [run.neurons for run in applied.report.runs] == [1, 1]
    assert_close(step_of_used(net), step_of_used(plain))


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


class _Broadcast(nn.Module):
    """A branch of other sizes than the stream that it is added to."""

    def __init__(self, pool: nn.Module, channels: int) -> None:
        super().__init__()
        self.lif, self.pool, self.conv = LIFNode(), pool, nn.Conv2d(4, channels, 1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + branch."""
        y = self.bn(self.conv(self.pool(self.lif(x).flatten(0, 1))))
        return x + y.unflatten(0, x.shape[:2])


BROADCASTS = {"space": (nn.AdaptiveAvgPool2d(1), 4), "channels": (nn.Identity(), 1)}


@pytest.mark.parametrize("slab_bytes", [None, 1024])
@pytest.mark.parametrize("over", BROADCASTS)
def test_sums_by_broadcasting(over, slab_bytes):
    """They are the user's where streams are not on the grid, and refused where they would be."""
    pool, channels = BROADCASTS[over]
    net, plain = _Broadcast(pool, channels), _Broadcast(pool, channels)
    plain.load_state_dict(net.state_dict())
    apply(net, "keep-spikes").set_slab_bytes(slab_bytes)
    found, expected = step_of_used(net), step_of_used(plain)
    assert_close({"out": found["loss-out"]}, {"out": expected["loss-out"]})
    apply(net, "reverse", grid=True).set_slab_bytes(slab_bytes)
    reset_net(net)
    with pytest.raises(UsageError, match="does not do by broadcasting; leave the module out"):
        net(X)


class _Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif, self.scales, self.shift = LIFNode(), [1.0, 2.0], (0.0,)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(x) * self.scales[1] + self.shift[0]


def test_lists_and_tuples_of_a_module_are_followed():
    """As plain attributes are."""
    net = _Listed()
    apply(net)
    spikes = net(X) / 2
    reset_net(net)
    net.scales[1], net.shift = 3.0, (1.0,)
    assert torch.equal(net(X), spikes * 3 + 1)


def test_what_is_no_strategy_or_no_module():
    """Both are said in one line."""
    with pytest.raises(UsageError, match="None is no strategy; give the name of one"):
        apply(nn.Sequential(LIFNode()), None)
    wrong: Any = "net"
    with pytest.raises(UsageError, match="a str is no module"):
        apply(wrong)
