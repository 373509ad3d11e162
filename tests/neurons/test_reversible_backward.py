"""The three backwards of the reversible neuron: one gradient, and what each keeps for it."""

import pytest
import torch
from torch import Tensor

from revedge.errors import UsageError
from revedge.kernels import (
    SURROGATES,
    ReversibleParams,
    grid_round,
    reference,
    reversible_forward_stored,
    reversible_inverse_printed,
)
from revedge.kernels.reference.reversible import grouped
from revedge.neurons import BACKWARDS, ReversibleNode, Surrogate, functional, reset_net
from revedge.neurons.conventional import conventional_backward, conventional_backward_printed

# (shape, dim, groups, other parameters); all of them are float32 numbers, as the kernels round them, and so is 1 / tau.
CASES = [
    ((1, 1, 2), -1, 2, {"alpha": 0.25}),
    ((3, 2, 9, 5), 2, 3, {"alpha": 0.3125, "beta": 0.6875, "tau": 4 / 3}),
    ((8, 3, 22), -1, 2, {"alpha": 0.0625, "beta": 2.0, "tau": 4.0, "v_reset": 0.1875}),
    ((5, 2, 10, 3, 7), -3, 5, {"alpha": 0.8125, "beta": -0.5, "v_threshold": 0.625}),
    ((13, 1, 4, 63), 2, 4, {"alpha": 0.0, "tau": 1.0}),
]
ROUNDING = 2.0**-24 * 1.001  # and the terms of second order
# A term of the gradient passes at most two groups in a step. In each it meets at most 8 operations that round (products
# with vr - m, h, 1 - y, alpha, a and the sums behind them) and an h and its argument of at most 8; twice that, because
# autograd splits 1 - a and (1 - y) m in two terms each.
ROUNDINGS_A_STEP = 2 * 2 * (8 + 8)


def definition(x: Tensor, g_y: Tensor, rp: ReversibleParams, dim: int) -> Tensor:
    """The gradient of x by autograd through the step function."""
    x = x.clone().requires_grad_()
    step_dim = dim if dim < 0 else dim - 1
    v, outputs = torch.zeros_like(x[0]), []
    for x_t in x:
        y_t, v = functional.reversible_step(x_t, v, rp, step_dim)
        outputs.append(y_t)
    torch.stack(outputs).backward(g_y)
    assert x.grad is not None
    return x.grad


def size_of_terms(y: Tensor, m: Tensor, g_y: Tensor, rp: ReversibleParams, dim: int) -> Tensor:
    """The gradient's recursion with every term made positive, as autograd splits them; float64, like ``y``.

    A sum of products that are each rounded d times is wrong by at most d * 2**-24 times this.
    """
    n, a = rp.groups, 1.0 / rp.tau
    y_TPGL, m_TPGL = grouped(y.double(), n, dim), grouped(m.double(), n, dim)
    g_TPGL = grouped(g_y.double().abs(), n, dim).clone()
    g_v = [torch.zeros_like(y_TPGL[0, :, 0]) for _ in range(n)]
    for t in reversed(range(y.shape[0])):
        g_y_t, g_m = list(g_TPGL[t].unbind(1)), [g_v[0]] * n
        for k in reversed(range(n)):
            m_k = m_TPGL[t, :, k]
            through = 0.0 if rp.detach_reset else m_k.abs() + abs(rp.v_reset)
            g_y_t[k] = g_y_t[k] + g_v[k] * through + (g_m[n - 1] * a if k == n - 2 else 0.0)
            h = reference.surrogate_derivative(
                m_k - rp.v_threshold, rp.surrogate, rp.surrogate_alpha
            )
            g_m[k] = g_y_t[k] * h + g_v[k] * (1.0 + y_TPGL[t, :, k].abs())
            g_v[k] = g_v[k] * abs(rp.alpha) + g_m[k] * (1.0 + a)
        for k in range(n):
            through = g_y_t[(k - 1) % n] * abs(rp.beta)
            g_TPGL[t, :, k] = through if k == n - 1 else g_m[k] * a + through
    return g_TPGL.view(y.shape)


def three_gradients(x: Tensor, g_y: Tensor, rp: ReversibleParams, dim: int) -> dict[str, Tensor]:
    """By `ReversibleNode` under autograd."""
    found = {}
    for backward in BACKWARDS:
        node = ReversibleNode(
            groups=rp.groups,
            tau=rp.tau,
            alpha=rp.alpha,
            beta=rp.beta,
            v_threshold=rp.v_threshold,
            v_reset=rp.v_reset,
            detach_reset=rp.detach_reset,
            surrogate=Surrogate(rp.surrogate, rp.surrogate_alpha),
            dim=dim,
            backward=backward,
        )
        leaf = x.clone().requires_grad_()
        node(leaf).backward(g_y)
        assert leaf.grad is not None
        found[backward] = leaf.grad
    return found


@pytest.mark.parametrize(("shape", "dim", "groups", "more"), CASES, ids=str)
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_all_equal_autograd_of_the_definition(
    shape: tuple[int, ...], dim: int, groups: int, more: dict, detach: bool, surrogate: str
) -> None:
    """In float64, to 1e-10 of the largest gradient: rounding is 1e-16, any wrong term shows at once."""
    rp = ReversibleParams(groups=groups, detach_reset=detach, surrogate=surrogate, **more)
    torch.manual_seed(0)
    x, g_y = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    expected = definition(x, g_y, rp, dim)
    for name, found in three_gradients(x, g_y, rp, dim).items():
        assert float((found - expected).abs().max()) <= 1e-10 * float(expected.abs().max()), name


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("shape", "dim", "groups"), [case[:3] for case in CASES], ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_direct_and_stored_agree_to_the_last_bit(
    shape: tuple[int, ...], dim: int, groups: int, beta: float, surrogate: str
) -> None:
    """Float32, on the grid, beta a power of two: what is rebuilt is what was kept."""
    rp = ReversibleParams(groups=groups, tau=1.7, alpha=0.13, beta=beta, surrogate=surrogate)
    torch.manual_seed(0)
    found = three_gradients(grid_round(torch.randn(shape)), torch.randn(shape), rp, dim)
    assert torch.equal(found["direct"].view(torch.int32), found["stored"].view(torch.int32))


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("shape", "dim", "groups", "more"), CASES, ids=str)
def test_float32_is_right_to_its_rounding(
    shape: tuple[int, ...], dim: int, groups: int, more: dict, detach: bool
) -> None:
    """All three against the exact sum over the same membranes: off by at most d * 2**-24 of its terms.

    d counts the roundings of the steps that a gradient has come back through.
    """
    if "beta" in more:  # a power of two, so that all see the same membranes
        more = more | {"beta": 2.0 * more["beta"] / abs(more["beta"])}
    rp = ReversibleParams(groups=groups, detach_reset=detach, **more)
    torch.manual_seed(0)
    x, g_y = grid_round(torch.randn(shape)), torch.randn(shape)
    y, _, m = reversible_forward_stored(x, rp, dim)
    exact = reference.reversible_stored_backward(y.double(), m.double(), g_y.double(), rp, dim)
    steps_back = torch.arange(shape[0], 0, -1).view(-1, *[1] * (x.dim() - 1))
    bound = ROUNDINGS_A_STEP * steps_back * ROUNDING * size_of_terms(y, m, g_y, rp, dim)
    assert float(bound[-1].median()) < 1e-4 * float(exact[-1].abs().median())  # it says something
    for name, found in three_gradients(x, g_y, rp, dim).items():
        assert bool(((found.double() - exact).abs() <= bound).all()), name


@pytest.mark.parametrize(("backward", "kept"), [("direct", 1), ("conventional", 1), ("stored", 2)])
def test_what_each_keeps(backward: str, kept: int) -> None:
    """Y, which the next layer keeps anyway, and the membranes if the backward is a stored one; no input, no graph."""
    node = ReversibleNode(backward=backward)
    x = torch.randn(5, 2, 50, requires_grad=True)
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = node(x)
    assert y.untyped_storage().data_ptr() in found
    assert x.untyped_storage().data_ptr() not in found
    assert list(found.values()) == [x.untyped_storage().nbytes()] * kept


@pytest.mark.parametrize("backward", BACKWARDS)
def test_gradients_of_any_stride_are_taken_and_left_alone(backward: str) -> None:
    """A gradient that is expanded, as that of a sum is, and one that is a view; neither is written to."""
    node = ReversibleNode(backward=backward)
    x = grid_round(torch.randn(3, 4, 6)).requires_grad_()
    ones = torch.ones(3, 4, 6)
    (expected,) = torch.autograd.grad(node(x), x, ones)
    reset_net(node)
    (of_sum,) = torch.autograd.grad(node(x).sum(), x)
    reset_net(node)
    view = torch.ones(6, 4, 3).permute(2, 1, 0)
    (of_view,) = torch.autograd.grad(node(x), x, view)
    assert torch.equal(of_sum, expected)
    assert torch.equal(of_view, expected)
    assert torch.equal(view, ones)


def test_printed_inverse_is_conventional_for_one_step() -> None:
    """T = 1: the way back through the printed inverse gives the same X and gradient, to its rounding."""
    rp = ReversibleParams()
    x, g_y = grid_round(torch.randn(1, 5, 40)), torch.randn(1, 5, 40)
    y, v_T, _ = reversible_forward_stored(x, rp)
    rebuilt, found = conventional_backward_printed(y, v_T, g_y, rp, -1)
    expected_x, expected = conventional_backward(y, g_y, rp, -1)
    torch.testing.assert_close(rebuilt, expected_x, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(expected_x, x)


def test_printed_inverse_is_the_kernels_printed_inverse() -> None:
    """T = 12, three groups: X is that of `kernels.reversible_inverse_printed`, which is held against the paper."""
    rp = ReversibleParams(groups=3, v_reset=0.25, beta=0.5)
    x, g_y = grid_round(torch.randn(12, 5, 45)).double(), torch.randn(12, 5, 45).double()
    y, v_T, _ = reversible_forward_stored(x, rp)
    rebuilt, _ = conventional_backward_printed(y, v_T, g_y, rp, -1)
    expected, _, _ = reversible_inverse_printed(y, v_T, rp, -1)
    torch.testing.assert_close(rebuilt, expected, rtol=0, atol=1e-3)


def test_unknown_backward_is_refused() -> None:
    """With the names that are known."""
    with pytest.raises(UsageError, match="direct, conventional, stored"):
        ReversibleNode(backward="inverse")
