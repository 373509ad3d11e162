"""The reversible neuron as a module."""

import pytest
import torch
from torch import Tensor

from revedge.kernels import grid_round
from revedge.neurons import ReversibleNode, reset_net, set_step_mode


@pytest.mark.parametrize(("groups", "dim", "shape"), [(2, -1, (5, 3, 6)), (3, 2, (4, 2, 9, 5, 5))])
def test_modes_agree(groups: int, dim: int, shape: tuple[int, ...]) -> None:
    """On the grid, a sequence, single steps and explicit steps: same output, same gradient.

    Outputs to the last bit; autograd adds the gradient's terms in another order, so 1e-5.
    """
    torch.manual_seed(0)
    node = ReversibleNode(groups=groups, dim=dim, v_reset=0.1)
    x = grid_round(torch.randn(shape))
    weight = torch.randn(shape)
    results: list[tuple[Tensor, Tensor]] = []
    for mode in ("m", "s", "step"):
        reset_net(node)
        leaf = x.clone().requires_grad_()
        if mode == "m":
            y = node(leaf)
        elif mode == "s":
            set_step_mode(node, "s")
            y = torch.stack([node(x_t) for x_t in leaf])
            set_step_mode(node, "m")
        else:
            v, outputs = node.initial_state(shape[1:], x), []
            for x_t in leaf:
                y_t, v = node.step(x_t, v)
                outputs.append(y_t)
            y = torch.stack(outputs)
        (y * weight).sum().backward()
        assert leaf.grad is not None
        results.append((y.detach(), leaf.grad))
    for y, g in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.allclose(g, results[0][1], rtol=1e-5, atol=1e-5)


def test_keeps_its_output_only() -> None:
    """Between forward and backward only Y is kept, which the next layer keeps anyway."""
    node = ReversibleNode()
    x = torch.randn(5, 2, 50, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = node(x)
    assert kept == [y.untyped_storage().data_ptr()]


def test_state_carries_over_until_reset() -> None:
    """Two halves give the output of the whole."""
    node = ReversibleNode()
    x = torch.randn(8, 2, 6)
    with torch.no_grad():
        whole = node(x)
        reset_net(node)
        assert torch.equal(torch.cat([node(x[:3]), node(x[3:])]), whole)
