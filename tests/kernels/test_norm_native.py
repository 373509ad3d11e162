"""Batch norm by its parts: C equals the reference bit for bit, and the reference equals torch."""

import pytest
import torch
from kernel_checks import assert_same_bits

from revedge import kernels
from revedge.kernels import reference

SHAPES = [(1, 1), (5, 3), (6, 3, 9), (4, 1, 7, 7), (2, 3, 32, 32), (3, 2, 4097), (64, 17, 31)]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_equals_reference(shape: tuple[int, ...], threads: int) -> None:
    """Statistics, forward and backward, at odd sizes, for one and two threads."""
    y, g, weight = torch.randn(shape) + 3, torch.randn(shape), torch.randn(shape[1])
    for value, expected in zip(kernels.channel_stats(y), reference.channel_stats(y), strict=True):
        assert_same_bits(value, expected)
    mean, var = reference.channel_stats(y)
    scale, shift, inv_std = kernels.norm_affine(mean, var, weight, weight - 1, 1e-5)
    assert_same_bits(kernels.norm_forward(y, scale, shift), reference.norm_forward(y, scale, shift))
    y_again, g_again, g_expected = y.clone(), g.clone(), g.clone()
    results = kernels.norm_backward_(y, g, mean, inv_std, weight)
    expected = reference.norm_backward_(y, g_expected, mean, inv_std, weight)
    assert_same_bits(g, g_expected)
    over_y = kernels.norm_backward_(y_again, g_again, mean, inv_std, weight, over_y=True)
    assert_same_bits(y_again, g_expected)
    for found in (results, over_y):
        for value, value_expected in zip(found, expected, strict=True):
            assert_same_bits(value, value_expected)


@pytest.mark.parametrize("name", ["native", "reference"])
def test_backward_over_the_input(name: str) -> None:
    """The gradient goes where it is asked to, the other tensor stays; a slab of ``g`` may be meant."""
    module = kernels if name == "native" else reference
    y, g = torch.randn(5, 2, 9), torch.randn(5, 6, 9)
    norm = (torch.randn(2), torch.rand(2) + 1, torch.randn(2))
    y_before, g_before = y.clone(), g.clone()
    module.norm_backward_(y, g, *norm, first=3)
    assert_same_bits(y, y_before)
    expected = g[:, 3:5].contiguous()
    g.copy_(g_before)
    module.norm_backward_(y, g, *norm, first=3, over_y=True)
    assert_same_bits(g, g_before)
    assert_same_bits(y, expected)


@pytest.mark.parametrize("plane", [1, 9, 32, 67])
def test_statistics_in_chunks(plane: int, threads: int) -> None:
    """Sums taken chunk by chunk give the bits of the statistics of the whole."""
    y = torch.randn(13, 5, plane) + 2
    sums = kernels.ChannelSums()
    for chunk in y.split([1, 4, 7, 1]):
        sums.add(chunk)
    for value, expected in zip(sums.stats(), reference.channel_stats(y), strict=True):
        assert_same_bits(value, expected)


def test_sum_order_is_the_documented_one() -> None:
    """Sixteen lanes over each plane, planes in order, pairs of lanes last: written out in full."""
    values = torch.randn(3, 2, 37)
    expected = []
    for channel in range(2):
        lanes = [0.0] * 16
        for plane in values[:, channel].double().tolist():
            for i, value in enumerate(plane):
                lanes[i % 16] += value
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [lanes[j] + lanes[j + half] for j in range(half)]
        expected.append(lanes[0] / (3 * 37))
    assert (
        kernels.channel_stats(values)[0].tolist()
        == torch.tensor(expected, dtype=torch.float64).to(torch.float32).tolist()
    )


def test_equals_batch_norm() -> None:
    """Forward and gradients are those of torch's batch norm in float64, to float32 rounding.

    2e-6: some ten float32 roundings of 6e-8 each, on values of order 1 to 4.
    """
    y = torch.randn(12, 5, 6, 6) * 2 + 1
    weight, bias, g = torch.randn(5), torch.randn(5), torch.randn(12, 5, 6, 6)
    y64, weight64, bias64 = (a.double().requires_grad_() for a in (y, weight, bias))
    z64 = torch.nn.functional.batch_norm(y64, None, None, weight64, bias64, True, 0.1, 1e-5)
    (z64 * g.double()).sum().backward()
    mean, var = kernels.channel_stats(y)
    scale, shift, inv_std = kernels.norm_affine(mean, var, weight, bias, 1e-5)
    z = kernels.norm_forward(y, scale, shift)
    g_weight, g_bias = kernels.norm_backward_(y, g, mean, inv_std, weight)
    grads = (y64.grad, weight64.grad, bias64.grad)
    for value, expected in zip((z, g, g_weight, g_bias), (z64, *grads), strict=True):
        assert expected is not None
        error = (value.double() - expected.detach()).abs().max() / expected.detach().abs().max()
        assert float(error) < 2e-6


@pytest.mark.parametrize("plane", [1, 9, 32, 67])
@pytest.mark.parametrize("over_y", [False, True])
def test_backward_in_pieces(plane: int, over_y: bool, threads: int) -> None:
    """Sums taken of pieces from the last to the first, then applied, give the bits of the backward of the whole."""
    y, g = torch.randn(13, 5, plane) + 2, torch.randn(13, 5, plane)
    mean, var = kernels.channel_stats(y)
    norm = (mean, (var + 1e-5).rsqrt(), torch.randn(5))
    expected = g.clone()
    of_whole = kernels.norm_backward_(y, expected, *norm)
    sums = kernels.GradientSums(*norm)
    pieces = list(zip(y.split([1, 4, 7, 1]), g.split([1, 4, 7, 1]), strict=True))
    for y_piece, g_piece in reversed(pieces):
        sums.add(y_piece, g_piece)
    found = [sums.apply_(*piece, over_y=over_y) for piece in pieces]
    assert all(each is piece[not over_y] for each, piece in zip(found, pieces, strict=True))
    assert_same_bits(torch.cat(found), expected)
    for value, of_all in zip(sums.gradients(), of_whole, strict=True):
        assert_same_bits(value, of_all)


@pytest.mark.usefixtures("native")
def test_native_pieces_equal_the_reference(threads: int) -> None:
    """Lanes, what is found from them, and its application, one by one."""
    y, g = torch.randn(6, 3, 37) + 1, torch.randn(6, 3, 37)
    mean, inv_std, weight = torch.randn(3), torch.rand(3) + 1, torch.randn(3)
    lanes, lanes_expected = (torch.zeros(2, 3, reference.LANES, dtype=torch.float64) for _ in "ab")
    torch.ops.revedge.gradient_lanes_(y, g, mean, lanes)
    reference.gradient_lanes_(y, g, mean, lanes_expected)
    assert_same_bits(lanes, lanes_expected)
    results = torch.ops.revedge.lane_gradients(lanes, inv_std, 222)
    assert_same_bits(results, reference.lane_gradients(lanes, inv_std, 222))
    g_expected = g.clone()
    torch.ops.revedge.norm_backward_apply_(y, g, mean, inv_std, weight, results, False)
    reference.norm_backward_apply_(y, g_expected, mean, inv_std, weight, results, False)
    assert_same_bits(g, g_expected)
