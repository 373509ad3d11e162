"""Between forward and backward anything may happen to a model; gradients are those of the forward pass, or an error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from apply_nets import Block, X, assert_close, conv, step
from engine_checks import digest
from torch import Tensor, nn

from revedge import models
from revedge.engine import STRATEGIES, apply
from revedge.errors import ReversibilityError, UsageError
from revedge.neurons import LIFNode, reset_net


class _Net(nn.Module):
    """Two blocks, dropout, a convolution; ``after`` is done to what the blocks give out."""

    def __init__(self, after: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.lif, self.drop, self.conv = LIFNode(), nn.Dropout(0.4), conv(4, 3)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[T*B, 3, H, W]``, or what ``after`` makes of the blocks' output."""
        x = self.blocks(x)
        if self.after is not None:
            return self.after(x)
        return self.conv(self.drop(self.lif(x).flatten(0, 1)))


def _fresh(strategy: str | None, *, grid: bool = False, after: Any = None) -> _Net:
    torch.manual_seed(0)
    net = _Net(after).train()
    if strategy is not None:
        apply(net, strategy, grid=grid)
    return net


def _gradients(net: nn.Module, between: Callable[[], object] = lambda: None) -> dict[str, Tensor]:
    reset_net(net)
    net.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    out = net(X)
    between()
    (out * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_that_is_put_in_evaluation_in_between(strategy, grid):
    """Dropout and norms go backward in the mode of the forward pass; the new mode stays."""
    expected = _gradients(_fresh(strategy, grid=grid))
    net = _fresh(strategy, grid=grid)
    found = _gradients(net, net.eval)
    assert digest(found) == digest(expected)
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("grid", [False, True])
def test_running_statistics_that_move_in_between(grid):
    """A forward pass in evaluation goes backward by the statistics that it normalized with."""
    expected = _gradients(_fresh("keep-spikes", grid=grid).eval())
    net = _fresh("keep-spikes", grid=grid).eval()

    def train_on_something_else() -> None:
        reset_net(net)
        net.train()(X * 3)
        net.eval()

    assert digest(_gradients(net, train_on_something_else)) == digest(expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_that_are_written_over_in_between(strategy):
    """It is an error, as it is in plain autograd: a recompute would take the new weights, unnoticed."""
    net, plain = _fresh(strategy), _fresh(None)
    doubled = {name: 2 * value for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        _gradients(plain, lambda: plain.load_state_dict(doubled))
    with pytest.raises(ReversibilityError, match=r"weight \(3, 4, 3, 3\) of a Conv2d was written"):
        _gradients(net, lambda: net.load_state_dict(doubled))
    found = _gradients(net)
    assert found.keys() == dict(net.named_parameters()).keys()

    net = models.create("ms-resnet10", in_shape=(2, 8, 8), num_classes=3, width=4, timesteps=2)
    net.set_strategy(strategy)
    loss = net(torch.rand(2, 2, 2, 8, 8)).square().sum()
    torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1).step()  # no gradients yet: nothing
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    with pytest.raises(ReversibilityError, match="was written over between forward and backward"):
        loss.backward()


@pytest.mark.parametrize("static", [False, True])
def test_an_input_that_is_written_over_in_between(static):
    """It is autograd's own error, where the input is needed again; of one image for all time steps, too."""
    net = models.create(
        "vgg5", in_shape=(2, 8, 8), num_classes=3, width=4, timesteps=2, static=static
    )
    x = torch.rand((2, 2, 8, 8) if static else (2, 2, 2, 8, 8))
    loss = net(x).square().sum()
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_output_that_is_written_over_in_between(strategy):
    """Inputs are rebuilt from it, so it is an error where nobody could see it coming."""
    net = _fresh(strategy, grid=True, after=lambda x: x)
    reset_net(net)
    out = net(X)
    loss = out.square().sum()
    out.detach().flatten(0, 1).mul_(2.0)
    with pytest.raises(RuntimeError, match=r"written over|modified by an inplace operation"):
        loss.backward()
    reset_net(net)
    out = net(X)
    torch.relu_(out)
    with pytest.raises(ReversibilityError, match="write to a clone of it"):
        out.sum().backward()


def _adds(x: Tensor) -> Tensor:
    x += 1.0
    return x


_WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_": torch.relu_,
    "a method of a view": lambda x: x.flatten(0, 1).mul_(0.5),
    "augmented": _adds,
    "inplace=True": lambda x: nn.functional.relu(x.unflatten(2, (2, 2))[0], inplace=True),
    "a module": nn.ReLU(inplace=True),
}


@pytest.mark.parametrize("how", _WRITES)
def test_an_output_that_the_forward_itself_writes_over(how):
    """The graph shows it, so a copy is written to; under every strategy the bits are those of `store`."""
    found = {
        strategy: digest(_gradients(_fresh(strategy, grid=True, after=_WRITES[how])))
        for strategy in STRATEGIES
    }
    assert len(set(found.values())) == 1
    plain = _gradients(_fresh(None, after=_WRITES[how]))
    assert_close(_gradients(_fresh("reverse", after=_WRITES[how])), plain)


def test_weights_that_stand_in_for_one_call():
    """`functional_call` puts other tensors in the place of parameters, which get their gradients."""

    def gradients(net: nn.Module) -> dict[str, Tensor]:
        scale = torch.tensor(1.1, requires_grad=True)
        weights = {name: p * scale for name, p in net.named_parameters()}
        reset_net(net)
        torch.manual_seed(7)
        torch.func.functional_call(net, weights, (X,)).square().sum().backward()
        assert scale.grad is not None
        found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        return {"scale": scale.grad, **found}

    net = _fresh("keep-spikes")
    before = dict(net.named_parameters())
    assert_close(gradients(net), gradients(_fresh(None)))
    assert all(p is before[name] for name, p in net.named_parameters())


def test_one_value_per_channel_has_no_variance():
    """A batch norm in training refuses it, as torch's own does."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Unflatten(0, (1, 1)), LIFNode())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.ones(1, 3))
    net[2] = _Parted()
    apply(net)
    with pytest.raises(UsageError, match="one value per channel"):
        net(torch.ones(1, 3))
    assert net.eval()(torch.ones(1, 3)).shape == (1, 1, 4)


class _Parted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (1, 1))


@pytest.mark.parametrize("shape", [(5, 3), (5, 0, 3), (1, 1, 3)])
def test_one_sample_and_none(shape):
    """`[T, features]` without a batch axis, and an empty batch, do as in the plain net."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), LIFNode(), nn.Linear(4, 2))

    net, x = build(), torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2
    apply(net, "keep-spikes")
    assert_close(step(net, x), step(build(), x))


def test_an_input_of_one_axis_is_refused():
    """There is no saying what of it is time and what batch."""
    net = nn.Sequential(LIFNode(), nn.ReLU())
    apply(net)
    with pytest.raises(UsageError, match=r"given \[T, B, ...\], and 0 is given \(5,\)"):
        net(torch.ones(5))
