"""Update in backward: the same weights as with a step after it, and no gradient left over."""

import pytest
import torch
from engine_checks import NETS, digest, fresh_net, net_input
from torch import Tensor, nn
from torch.nn import functional as F

from revedge.engine import STRATEGIES, Branch, Feed, Unit, update_in_backward
from revedge.engine.vjp import Gradients
from revedge.errors import UsageError


def descend(parameter: nn.Parameter, gradient: Tensor) -> None:
    """One step of sign descent (gradients of nets with dead channels are huge); overwrites the gradient, as it may."""
    parameter.data.sub_(gradient.sign_().mul_(1e-3))


def train(net: nn.Module, x: Tensor, steps: int = 2) -> dict[str, Tensor]:
    """Weights and statistics after some steps; those whose gradient is left are updated after backward."""
    net.train()
    for _ in range(steps):
        net.zero_grad(set_to_none=True)
        logits = net(x)
        F.cross_entropy(logits, torch.arange(logits.shape[0]) % logits.shape[1]).backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                descend(parameter, parameter.grad)
    return net.state_dict()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_weights_as_a_step_after_backward(name, strategy):
    """Weights that change behind the backward pass are never read by it again."""
    config = NETS[name]
    expected = digest(train(fresh_net(config, strategy), net_input(config)))
    net = fresh_net(config, strategy)
    updated: list[nn.Parameter] = []
    update_in_backward(net, lambda p, g: (updated.append(p), descend(p, g))[1])
    assert digest(train(net, net_input(config))) == expected
    assert all(p.grad is None for p in net.parameters())
    assert len(updated) == 2 * len(list(net.parameters()))
    update_in_backward(net, None)
    train(net, net_input(config), steps=1)
    assert all(p.grad is not None for p in net.parameters())


def test_gradients_are_freed_unit_by_unit():
    """While the first unit of a deep branch goes backward, the gradients of all others are gone."""
    branch = Branch([Unit(op=nn.Conv2d(4, 4, 1)) for _ in range(5)])
    feed = Feed([branch])
    alive: list[int] = []
    found: list[Gradients] = []
    settle = Gradients.settle

    class Spy(Gradients):
        def settle(self, module: nn.Module) -> None:
            alive.append(len(self))
            found.append(self)
            settle(self, module)

    update_in_backward(feed, descend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("revedge.engine.run.Gradients", Spy)
        feed(torch.randn(2, 1, 4, 3, 3)).sum().backward()
    assert alive == [2] * 5  # weight and bias of one convolution
    assert not found[-1]


def test_what_cannot_be_updated_is_refused():
    """A module without runs, and a weight that two units share, are errors that say what to do."""
    with pytest.raises(UsageError, match="no run of revedge"):
        update_in_backward(nn.Linear(2, 2), descend)
    shared = nn.Conv2d(4, 4, 1)
    feed = Feed([Branch([Unit(op=shared), Unit(op=shared)])])
    with pytest.raises(UsageError, match="one parameter"):
        update_in_backward(feed, descend)
    update_in_backward(feed, None)
