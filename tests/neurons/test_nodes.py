"""Neuron modules: modes agree, state carries over, gradients reach everything."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from revedge.errors import UsageError
from revedge.neurons import (
    BaseNode,
    IFNode,
    LateResetNode,
    LIFNode,
    ParametricLIFNode,
    ReversibleNode,
    Surrogate,
    detach_net,
    reset_net,
    set_step_mode,
)

Make = Callable[[], BaseNode]
NODES: dict[str, Make] = {
    "if": lambda: IFNode(),
    "if-soft": lambda: IFNode(v_reset=None, detach_reset=True),
    "lif": lambda: LIFNode(tau=1.5),
    "lif-undecayed": lambda: LIFNode(tau=3.0, decay_input=False, v_reset=-0.2),
    "lif-soft": lambda: LIFNode(v_reset=None, surrogate="sigmoid"),
    "plif": lambda: ParametricLIFNode(init_tau=2.5, surrogate="triangle"),
    "plif-undecayed": lambda: ParametricLIFNode(
        decay_input=False, v_reset=0.1, surrogate=Surrogate("rectangle", 0.7)
    ),
    "plif-soft": lambda: ParametricLIFNode(v_reset=None, detach_reset=True),
    "late-reset": lambda: LateResetNode(0.8, 0.5),
}


@pytest.fixture(params=NODES, ids=str)
def make(request: pytest.FixtureRequest) -> Make:
    """Return a maker of each kind of neuron."""
    torch.manual_seed(0)
    return NODES[request.param]


def run_and_backward(
    node: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return spikes, gradient of x, gradients of parameters."""
    x = x.clone().requires_grad_()
    s = forward(x)
    weight = torch.linspace(-1, 1, s.numel()).reshape(s.shape)
    (s * weight).sum().backward()
    assert x.grad is not None
    grads = [p.grad for p in node.parameters()]
    node.zero_grad()
    return [s.detach(), x.grad, *(g for g in grads if g is not None)]


def explicit(node: BaseNode, x: Tensor) -> Tensor:
    v = node.initial_state(x.shape[1:], x)
    outputs = []
    for x_t in x:
        s, v = node.step(x_t, v)
        outputs.append(s)
    return torch.stack(outputs)


def single_steps(node: BaseNode, x: Tensor) -> Tensor:
    reset_net(node)
    set_step_mode(node, "s")
    s = torch.stack([node(x_t) for x_t in x])
    set_step_mode(node, "m")
    return s


def test_modes_agree(make: Make) -> None:
    """A sequence, single steps with hidden state, and explicit steps: same spikes and gradients.

    Spikes are equal to the last bit. Autograd adds the terms of a gradient in another order than
    the kernel: some ten float32 roundings of 6e-8, so 1e-5 relative, 1e-6 absolute.
    """
    node = make()
    x = torch.randn(6, 3, 4, 5) * 1.5
    ways = [node, lambda x: single_steps(node, x), lambda x: explicit(node, x)]
    results = []
    for way in ways:
        reset_net(node)
        results.append(run_and_backward(node, x, way))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        for g, g_expected in zip(other[1:], results[0][1:], strict=True):
            assert torch.allclose(g, g_expected, rtol=1e-5, atol=1e-6)


def test_state_carries_over_until_reset(make: Make) -> None:
    """Two halves give the spikes of the whole; after reset_net the first comes back."""
    node = make()
    x = torch.randn(8, 2, 7) * 1.5
    with torch.no_grad():
        whole = node(x)
        reset_net(node)
        halves = torch.cat([node(x[:4]), node(x[4:])])
        assert torch.equal(halves, whole)
        reset_net(node)
        assert node.v is None
        assert torch.equal(node(x), whole)


def test_gradient_crosses_calls_unless_detached(make: Make) -> None:
    """The loss of the second call reaches the input of the first, as autograd over steps does."""
    node = make()
    x = torch.randn(6, 2, 30) * 1.5

    def two_calls(x: Tensor) -> Tensor:
        reset_net(node)
        return torch.cat([node(x[:3]), node(x[3:])])

    expected = run_and_backward(node, x, lambda x: explicit(node, x))
    actual = run_and_backward(node, x, two_calls)
    assert torch.equal(actual[0], expected[0])
    assert torch.allclose(actual[1], expected[1], rtol=1e-5, atol=1e-7)

    reset_net(node)
    first = x[:3].clone().requires_grad_()
    node(first)
    detach_net(node)
    node(x[3:].clone().requires_grad_()).sum().backward()
    assert first.grad is None


def test_keeps_its_input_only(make: Make) -> None:
    """Between forward and backward the sequence keeps the input's memory and nothing else."""
    node = make()
    x = torch.randn(5, 2, 50, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() > 1:
            kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        node(x)
    assert set(kept) == {x.untyped_storage().data_ptr()}


def test_the_gradient_handed_in_is_left_alone(make: Make) -> None:
    """Backward must not write into a gradient that autograd may give to others too."""
    node = make()
    x = torch.randn(4, 3, requires_grad=True)
    g = torch.randn(4, 3)
    before = g.clone()
    node(x).backward(g)
    assert torch.equal(g, before)


def test_store_v_seq(make: Make) -> None:
    """The stored membranes end in the hidden state; spikes and gradients stay the same."""
    node = make()
    x = torch.randn(5, 2, 6)
    expected = run_and_backward(node, x, node)
    reset_net(node)
    node.store_v_seq = True
    actual = run_and_backward(node, x, node)
    assert node.v_seq is not None
    assert node.v is not None
    assert node.v_seq.shape == x.shape
    assert torch.equal(node.v_seq[-1], node.v)
    for value, value_expected in zip(actual, expected, strict=True):
        assert torch.allclose(value, value_expected, rtol=1e-5, atol=1e-6)


def test_meta_device(make: Make) -> None:
    """Forward and backward run on the meta device, where planning traces them."""
    node = make().to("meta")
    x = torch.empty(4, 2, 3, device="meta", requires_grad=True)
    node(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_hand_computed_lif() -> None:
    """LIF, tau 2, by hand: h = 0.6, 0.9, 1.05 (spike), 0.6; and soft reset keeps the rest."""
    x = torch.tensor([1.2, 1.2, 1.2, 1.2]).reshape(4, 1)
    hard = LIFNode(tau=2.0)
    assert hard(x).flatten().tolist() == [0, 0, 1, 0]
    assert hard.v is not None
    assert float(hard.v) == pytest.approx(0.6)
    soft = LIFNode(tau=2.0, v_reset=None)
    soft(x)
    assert soft.v is not None
    assert float(soft.v) == pytest.approx(0.05 / 2 + 0.6)


def test_another_shape_without_reset_is_refused() -> None:
    """A state of another batch size is an error that says what to do."""
    node = LIFNode()
    node(torch.zeros(2, 3, 4))
    with pytest.raises(UsageError, match="reset_net"):
        node(torch.zeros(2, 5, 4))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LIFNode(tau=1.0),
        lambda: ParametricLIFNode(init_tau=0.5),
        lambda: IFNode(surrogate="tanh"),
        lambda: IFNode(step_mode="x"),
        lambda: Surrogate("atan", -1.0),
        lambda: ReversibleNode(groups=1),
        lambda: ReversibleNode(beta=0.0),
    ],
)
def test_impossible_settings_are_refused(wrong: Callable[[], object]) -> None:
    """Settings that cannot work are errors when the neuron is made."""
    with pytest.raises(UsageError):
        wrong()


def test_parametric_leak_learns() -> None:
    """A step along the gradient of w moves tau, and a copy of the module is independent."""
    node = ParametricLIFNode()
    other = copy.deepcopy(node)
    (node(torch.rand(4, 3) * 3).mean() ** 2).backward()
    assert node.w.grad is not None
    assert float(node.w.grad.abs()) > 0
    with torch.no_grad():
        node.w.sub_(node.w.grad)
    assert node.params().decay != other.params().decay
