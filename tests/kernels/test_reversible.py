"""The reversible neuron: its equations, exact reconstruction, and the inverse that is not exact."""

import pytest
import torch
from kernel_checks import assert_same_bits
from torch import Tensor

from revedge import kernels
from revedge.errors import UsageError
from revedge.kernels import ReversibleParams, reference

SHAPES = [  # (shape, dim, groups)
    ((1, 1, 2), -1, 2),
    ((7, 3, 6), -1, 3),
    ((2, 1, 4, 63), 2, 4),
    ((7, 2, 6, 5, 7), 2, 2),
    ((3, 2, 12, 32, 32), 2, 3),
    ((2, 8194), -1, 2),
    ((4, 3, 128, 10, 10), 2, 2),
]


def equations_1_to_6(x: Tensor, rp: ReversibleParams) -> Tensor:
    """The paper's equations for two groups along the last dimension, one number at a time."""
    steps, width = x.shape[0], x.shape[1] // 2
    y = torch.zeros_like(x)
    for i in range(width):
        v1 = v2 = 0.0
        for t in range(steps):
            x1, x2 = float(x[t, i]), float(x[t, width + i])
            m1 = v1 + (x1 - v1) / rp.tau
            y1 = (1.0 if m1 >= rp.v_threshold else 0.0) + rp.beta * x2
            v1 = (1 - y1) * m1 + y1 * rp.v_reset + rp.alpha * v1
            m2 = v2 + (y1 - v2) / rp.tau
            y2 = (1.0 if m2 >= rp.v_threshold else 0.0) + rp.beta * x1
            v2 = (1 - y2) * m2 + y2 * rp.v_reset + rp.alpha * v2
            y[t, i], y[t, width + i] = y1, y2
    return y


def on_grid(shape: tuple[int, ...]) -> Tensor:
    return kernels.grid_round(torch.randn(shape))


def test_forward_is_equations_1_to_6() -> None:
    """Two groups: the paper's equations written out. Powers of two, so float64 rounds alike."""
    rp = ReversibleParams(tau=2.0, alpha=0.25, beta=0.5, v_threshold=0.75, v_reset=0.125)
    x = on_grid((4, 40))
    y = kernels.reversible_forward(x.double(), rp)
    assert torch.equal(y, equations_1_to_6(x.double(), rp))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("shape", "dim", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize(("detach", "beta"), [(True, 0.9), (False, 0.5), (False, -1.1)])
def test_native_equals_reference(
    shape: tuple[int, ...], dim: int, groups: int, detach: bool, beta: float, threads: int
) -> None:
    """Forward, reconstruction and gradients, all surrogates, odd sizes; off the grid too.

    A beta of 0.5 is divided by as a product, which must show in no bit.
    """
    for surrogate in kernels.SURROGATES:
        rp = ReversibleParams(
            groups=groups,
            tau=1.7,
            alpha=0.13,
            beta=beta,
            v_threshold=0.8,
            v_reset=0.05,
            detach_reset=detach,
            surrogate=surrogate,
        )
        x = torch.randn(shape)
        y, v = kernels.reversible_forward(x, rp, dim, return_state=True)
        y_expected, v_expected = reference.reversible_forward(x, rp, dim)
        assert_same_bits(y, y_expected)
        assert_same_bits(v, v_expected)
        assert_same_bits(
            kernels.reversible_reconstruct(y, rp, dim), reference.reversible_reconstruct(y, rp, dim)
        )
        y_stored, v_stored, m = kernels.reversible_forward_stored(x, rp, dim)
        assert_same_bits(y_stored, y_expected)
        assert_same_bits(v_stored, v_expected)
        assert_same_bits(m, reference.reversible_forward_stored(x, rp, dim)[2])
        g_y = torch.randn(shape)
        for kept in (None, m):
            g, g_expected = g_y.clone(), g_y.clone()
            rebuilt = kernels.reversible_backward_(y, g, rp, dim, kept)
            expected = (
                reference.reversible_backward_(y, g_expected, rp, dim)
                if kept is None
                else reference.reversible_stored_backward_(y, m, g_expected, rp, dim)
            )
            assert_same_bits(rebuilt, expected)
            assert_same_bits(g, g_expected)
            before = g_y.clone()
            assert_same_bits(kernels.reversible_backward(y, g_y, rp, dim, kept), g_expected)
            assert_same_bits(g_y, before)


@pytest.mark.parametrize("shape", [(3, 2, 2, 199), (2, 1, 2, 263_000), (2, 1, 2, 1000)], ids=str)
def test_any_vectors(shape: tuple[int, ...], vector_bits: int) -> None:
    """By hand-chosen vectors or without, blocks of 64 and what is left over, short rows and long: the same bits."""
    x, g_y = torch.randn(shape), torch.randn(shape)
    for surrogate in kernels.SURROGATES:
        rp = ReversibleParams(beta=0.9, v_reset=0.05, surrogate=surrogate)
        y, _, m = reference.reversible_forward_stored(x, rp, 2)
        assert_same_bits(
            kernels.reversible_reconstruct(y, rp, 2), reference.reversible_reconstruct(y, rp, 2)
        )
        for kept in (None, m):
            g, g_expected = g_y.clone(), g_y.clone()
            x_expected = (
                reference.reversible_backward_(y, g_expected, rp, 2)
                if kept is None
                else reference.reversible_stored_backward_(y, kept, g_expected, rp, 2)
            )
            assert_same_bits(kernels.reversible_backward(y, g_y, rp, 2, kept), g_expected)
            assert_same_bits(kernels.reversible_backward_(y, g, rp, 2, kept), x_expected)
            assert_same_bits(g, g_expected)


@pytest.mark.usefixtures("native")
def test_exactly_on_the_threshold() -> None:
    """Multiples of 1/4 meet the threshold exactly, which fires; C and reference agree on it."""
    rp = ReversibleParams(tau=1.0, alpha=0.0)
    x = torch.randint(-4, 8, (5, 400)) / 4
    y = kernels.reversible_forward(x, rp)
    assert_same_bits(y, reference.reversible_forward(x, rp, -1)[0])
    assert_same_bits(kernels.reversible_reconstruct(y, rp), x)
    assert kernels.reversible_forward(torch.tensor([[1.0, 0.0]]), rp).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("groups", [2, 3])
def test_reconstruction_is_exact_over_100_steps(groups: int, beta: float) -> None:
    """On the grid, with beta a power of two, X comes back bit for bit from Y alone."""
    rp = ReversibleParams(groups=groups, beta=beta)
    x = on_grid((100, 4, 600))
    y = kernels.reversible_forward(x, rp)
    assert_same_bits(kernels.reversible_reconstruct(y, rp), x)
    assert_same_bits(kernels.reversible_backward_(y, torch.randn_like(y), rp), x)
    m = kernels.reversible_forward_stored(x, rp)[2]
    assert_same_bits(kernels.reversible_backward_(y, torch.randn_like(y), rp, m=m), x)


def test_printed_inverse_is_right_for_one_step() -> None:
    """T = 1: X and V_0 come back to rounding, where the denominator is not small."""
    rp = ReversibleParams()
    x = on_grid((1, 4000))
    y, v_T = kernels.reversible_forward(x, rp, return_state=True)
    rebuilt, v_0, smallest = kernels.reversible_inverse_printed(y, v_T, rp)
    assert torch.allclose(rebuilt, x, atol=1e-6)
    # V' is rounded to 6e-8 of its size (below 8 here), then divided by the denominator.
    assert float(v_0.abs().max()) < 8 * 3 * 6e-8 / smallest


def test_printed_inverse_degrades_over_20_steps() -> None:
    """T = 20: inputs come back wrong by whole spikes, and the small denominator says so."""
    rp = ReversibleParams()
    x = on_grid((20, 20000))
    y, v_T = kernels.reversible_forward(x, rp, return_state=True)
    rebuilt, _, smallest = kernels.reversible_inverse_printed(y, v_T, rp)
    wrong = ((rebuilt - x).abs() > 0.5).float().mean()
    assert 0.005 < float(wrong) < 0.2  # 3 % in the literature's setting
    assert smallest < 1e-4  # errors are multiplied by more than 10^4 somewhere
    assert_same_bits(kernels.reversible_reconstruct(y, rp), x)


@pytest.mark.parametrize(("groups", "dim"), [(4, -1), (1, -1), (2, 0), (2, 5)])
def test_impossible_groups_are_refused(groups: int, dim: int) -> None:
    """Groups that do not divide the dimension, one group, time as the dimension."""
    with pytest.raises(UsageError, match=r"groups|split"):
        kernels.reversible_forward(torch.zeros(2, 3, 6), ReversibleParams(groups=groups), dim)
