"""Second derivatives: refused where a backward pass leaves no graph, and right where the error says they are."""

import pytest
import torch
from torch import Tensor, nn

from revedge.errors import UsageError
from revedge.neurons import LIFNode, ParametricLIFNode, ReversibleNode, reset_net

SEQUENCES = {"lif": LIFNode, "plif": ParametricLIFNode, "reversible": ReversibleNode}
# Spikes that nothing reads but the loss: then the gradient, by the surrogate, is a function with a derivative. Others
# enter it by value, and their own derivative is the surrogate again.
INSTEAD = {
    "lif over stored membranes": lambda: LIFNode(store_v_seq=True, detach_reset=True),
    "lif step by step": lambda: LIFNode(step_mode="s"),
}


def gradient(node: nn.Module, x: Tensor) -> Tensor:
    """The gradient of a linear loss, to be differentiated again: that of the output has no graph."""
    (g,) = torch.autograd.grad(node(x).sum(), x, create_graph=True)
    return g


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_gradient_without_a_graph_is_not_given_out(name):
    """Under create_graph the backward pass of a sequence raises, behind a linear loss too; without, it works."""
    node = SEQUENCES[name]()
    x = torch.randn(3, 2, 4, requires_grad=True)
    with pytest.raises(
        UsageError, match=r"create_graph=True .* leaves no graph; use step_mode='s'"
    ):
        gradient(node, x)
    reset_net(node)
    node(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", INSTEAD)
def test_what_the_error_names_has_second_derivatives(name):
    """They are those of finite differences of the gradient."""
    node = INSTEAD[name]()
    shape = (3, 2, 4) if node.step_mode == "m" else (2, 4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def first(x: Tensor) -> Tensor:
        reset_net(node)
        return gradient(node, x)

    assert torch.autograd.gradcheck(first, x)


def test_the_reversible_neuron_has_second_derivatives_step_by_step():
    """The gradient has a graph, in which the surrogate stands for the derivative of a spike, as ever."""
    x = torch.randn(2, 4, requires_grad=True)
    penalty = gradient(ReversibleNode(step_mode="s"), x).square().sum()
    assert float(torch.autograd.grad(penalty, x)[0].abs().sum()) > 0
