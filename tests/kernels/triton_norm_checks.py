"""What the Triton kernels of batch norm, by itself and before a neuron, must do; see triton_checks.py."""

import pytest
import torch
from kernel_checks import assert_same_bits
from torch import Tensor
from triton_where import VARIANTS, Where, documented_order, same, sums_in_documented_order

from revedge.kernels import NeuronParams, norm_affine, reference


def assert_sums_within(actual: Tensor, expected: Tensor, mean_size: Tensor, count: int) -> None:
    """The tolerance of triton/norm.py: one float32 unit, and 2 n 2^-53 of the mean of |v|."""
    allowed = expected.double().abs() * 2.0**-23 + mean_size * (2 * count * 2.0**-53)
    error = (actual.double() - expected.double()).abs()
    assert bool((error <= allowed).all()), f"off by {float((error / allowed).max()):g} tolerances"


NORM_SHAPES = [(1, 1), (5, 3), (6, 3, 9), (4, 1, 7, 7), (3, 2, 1500), (70, 5, 17), (1100, 2)]


def norm_every_shape(where: Where) -> None:
    """Every bit in the documented order; statistics within the derived tolerance of any order."""
    for shape in NORM_SHAPES:
        y, g, weight = torch.randn(shape) + 3, torch.randn(shape), torch.randn(shape[1])
        stats = where("channel_stats", y)
        with documented_order():
            same(stats, reference.channel_stats(y))
        mean, var = reference.channel_stats(y)
        count = y.numel() // y.shape[1]
        axes = [axis for axis in range(y.dim()) if axis != 1]
        assert_sums_within(stats[0], mean, y.double().abs().mean(axes), count)
        assert_sums_within(stats[1], var, y.double().square().mean(axes), 2 * count)
        scale, shift, inv_std = norm_affine(mean, var, weight, weight - 1, 1e-5)
        same(where("norm_forward", y, scale, shift), (reference.norm_forward(y, scale, shift),))
        g_y = g.clone()
        with documented_order():
            expected = reference.norm_backward_(y, g_y, mean, inv_std, weight)
        y_again, g_again = y.clone(), g.clone()
        same(where("norm_backward_", y, g, mean, inv_std, weight, 0, False), expected)
        assert_same_bits(g, g_y)
        same(where("norm_backward_", y_again, g_again, mean, inv_std, weight, 0, True), expected)
        assert_same_bits(y_again, g_y)


def norm_order_of_sums(where: Where) -> None:
    """Large numbers that cancel leave nothing but the roundings, which any other order changes."""
    for shape in ((40, 3, 17), (1, 2, 2600), (1100, 2)):
        half = torch.randn(shape) * 10.0 ** torch.randint(0, 12, shape)
        y = torch.cat((half, -half))[torch.randperm(2 * shape[0])]
        with documented_order():
            expected = reference.channel_stats(y)
        same(where("channel_stats", y), expected)
        assert_orders_differ(expected[0], reference.channel_stats(y)[0])


def assert_orders_differ(one: Tensor, other: Tensor) -> None:
    assert not torch.equal(one, other), "this input does not tell one order from another"


def norm_of_constants(where: Where) -> None:
    """The variance of equal numbers is 0 or some rounding, never below 0; NaN stays NaN."""
    torch.manual_seed(1)
    y = (torch.rand(64) * 10).reshape(1, 64, 1).expand(70, 64, 17).contiguous()
    mean, square = (sums_in_documented_order(a) / (70 * 17) for a in (y, y.double().square()))
    assert float((square - mean * mean).min()) < 0.0  # the case is there
    _, var = where("channel_stats", y)
    assert float(var.min()) == 0.0
    y = torch.ones(5, 2, 31)
    y[4, 1, 30] = float("nan")
    mean, var = where("channel_stats", y)
    assert mean[0] == 1.0
    assert var[0] == 0.0
    assert bool(mean[1].isnan())
    assert bool(var[1].isnan())


def check_norm_neuron(where: Where, p: NeuronParams, y: Tensor, *, with_state: bool) -> None:
    weight, bias = torch.randn(y.shape[2]), torch.randn(y.shape[2]) * 0.3
    mean, var = reference.channel_stats(y.flatten(0, 1))
    scale, shift, inv_std = norm_affine(mean, var, weight, bias, 1e-5)
    v0 = torch.randn(y.shape[1:]) if with_state else None
    floats = p.as_floats()
    for pack in (False, True):
        expected = reference.norm_neuron_forward(y, scale, shift, v0, p, pack)
        same(where("norm_neuron_forward", y, scale, shift, v0, floats, pack, True), expected)
    g = torch.randn_like(y)
    g_y, g_parts = g.clone(), g.clone()
    with documented_order():
        expected = reference.norm_neuron_backward_(y, g_y, mean, inv_std, weight, bias, p)
    same(where("norm_neuron_backward_", y, g, mean, inv_std, weight, bias, floats, 0), expected)
    assert_same_bits(g, g_y)

    state = (torch.randn(y.shape[1:]), torch.rand(y.shape[1:]) if p.learns_leak else None)
    for g_vT, leak in ((None, None), state):
        g_span, g_expected = (torch.ones_like(y) / 3 for _ in range(2))
        of_span = reference.norm_neuron_span_backward_(
            y, scale, shift, v0, g_expected, g_vT, p, leak
        )
        same(
            where("norm_neuron_span_backward_", y, scale, shift, v0, g_span, g_vT, floats, leak),
            of_span,
        )
        assert_same_bits(g_span, g_expected)

    z = where("norm_forward", y.flatten(0, 1), scale, shift)[0].reshape(y.shape)
    where("neuron_backward_", z, None, g_parts, None, floats, False)
    g_flat = g_parts.flatten(0, 1)
    same(where("norm_backward_", y.flatten(0, 1), g_flat, mean, inv_std, weight, 0), expected[:2])
    assert_same_bits(g_parts, g)


def norm_neuron(where: Where) -> None:
    """Behind a batch norm: with and without dimensions after the channels, equal to its parts."""
    for i, p in enumerate(VARIANTS[::9]):
        shape = ((3, 2, 3, 9), (4, 5, 6), (2, 3, 1, 7, 7), (3, 2, 8, 4))[i % 4]
        check_norm_neuron(where, p, torch.randn(shape) * 2 + 0.5, with_state=i % 2 == 0)
    with where.one_slab():
        check_norm_neuron(where, VARIANTS[3], torch.randn(2, 3, 5, 31), with_state=False)


def norm_neuron_pool(where: Where) -> None:
    """With a pool behind: halves and overlapping windows, means too, a slab of the channels."""
    p, y = VARIANTS[3], torch.randn(3, 2, 3, 6, 7) * 1.5
    floats, channels, first = p.as_floats(), 5, 1
    weight, bias = torch.rand(3) + 0.5, torch.randn(3) * 0.3
    mean, var = reference.channel_stats(y.flatten(0, 1))
    scale, shift, inv_std = norm_affine(mean, var, weight, bias, 1e-5)
    norm = [mean, inv_std, weight, bias]
    for window in ([2, 2, 2, 2, 0, 0], [3, 3, 2, 2, 1, 1]):
        height, width = (3, 3) if window[0] == 2 else (3, 4)
        total = 3 * 2 * channels * height * width
        bits, expected_bits = (torch.zeros((total + 7) // 8, dtype=torch.uint8) for _ in range(2))
        reference.norm_neuron_pool_(y, scale, shift, p, expected_bits, channels, first, window)
        where("norm_neuron_pool_", y, scale, shift, floats, bits, channels, first, window)
        assert torch.equal(bits, expected_bits)
        shape = [4, 3, 6, 7]
        spikes = torch.randint(0, 256, (4 * 3 * 6 * 7 // 8,), dtype=torch.uint8)
        means = reference.average_bits(spikes, shape, window)
        same(where("average_bits", spikes, shape, window), (means,))
        g_pooled = torch.randn(3, 2, channels, height, width)
        for average in (False, True):
            g, g_expected = (torch.ones(3, 2, channels, 6, 7) for _ in range(2))
            with documented_order():
                expected = reference.norm_neuron_pool_backward_(
                    y, g_pooled, g_expected, norm, p, first, window, average
                )
            args = (y, g_pooled, g, norm, floats, first, window, average)
            same(where("norm_neuron_pool_backward_", *args), expected)
            assert_same_bits(g, g_expected)


# Planes, and the (first channel, channels) of slabs: bits of two slabs in a byte, and not.
SLABS = [
    (1, [(0, 2), (2, 3), (5, 1), (6, 1)]),
    (49, [(0, 2), (2, 3), (5, 1), (6, 1)]),
    (8, [(0, 2), (2, 3), (5, 2)]),
    (4, [(0, 2), (2, 4), (6, 1)]),  # slabs of whole bytes, samples of half ones
    (4, [(0, 1), (1, 2), (3, 2), (5, 3)]),  # the other way round; two begin within a byte
]


def slabs_of_channels(where: Where) -> None:
    """A few channels at a time: the bits are those of all channels at once, sums too."""
    for plane, slabs in SLABS:
        channels = sum(count for _, count in slabs)
        p, y = VARIANTS[3], torch.randn(4, 3, channels, plane) * 1.5
        floats, flat = p.as_floats(), y.flatten(0, 1)
        weight, bias = torch.rand(channels) + 0.5, torch.randn(channels) * 0.3
        mean, var = where("channel_stats", flat)
        scale, shift, inv_std = norm_affine(mean, var, weight, bias, 1e-5)
        all_bits, _ = reference.norm_neuron_forward(y, scale, shift, None, p, True)
        g = torch.randn_like(y)
        g_norm, g_all, g_norm_all = g.clone(), g.clone(), g.clone()
        whole = where("norm_neuron_backward_", y, g_all, mean, inv_std, weight, bias, floats, 0)
        g_flat = g_norm_all.flatten(0, 1)
        whole_norm = where("norm_backward_", flat, g_flat, mean, inv_std, weight, 0)
        stream = torch.randn(12, channels, plane).mul_(100).round_().div_(128)
        stream_all = stream.clone()
        assert reference.grid_add_(stream, flat, scale, shift, 14, -1, stream_all)

        bits = torch.full_like(all_bits, 255)  # what a slab is written over does not matter
        for first, count in slabs:
            part = slice(first, first + count)
            y_slab = y[:, :, part].contiguous()
            y_flat = y_slab.flatten(0, 1)
            same(where("channel_stats", y_flat), (mean[part], var[part]))
            affine = (scale[part], shift[part])
            where("norm_neuron_pack_", y_slab, *affine, floats, bits, channels, first)
            norm = (mean[part], inv_std[part], weight[part])
            found = where("norm_neuron_backward_", y_slab, g, *norm, bias[part], floats, first)
            same(found, (whole[0][part], whole[1][part], whole[2][:, part]))
            found = where("norm_backward_", y_flat, g_norm.flatten(0, 1), *norm, first)
            same(found, (whole_norm[0][part], whole_norm[1][part]))
            assert where("grid_add_", stream, y_flat, *affine, 14, -1, stream, first) == (True,)
        assert_same_bits(bits, all_bits)
        assert_same_bits(g, g_all)
        assert_same_bits(g_norm, g_norm_all)
        assert_same_bits(stream, stream_all)


def slabs_that_do_not_fit(where: Where) -> None:
    """Channels outside of the tensor are an error, not a write somewhere else."""
    y, one, p = torch.zeros(1, 1, 2, 4), torch.ones(2), VARIANTS[0].as_floats()
    none, bits = torch.zeros(1, 3, 4), torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="3 channels, not 2 from 2 on"):
        where("norm_backward_", y[0], none, one, one, one, 2)
    with pytest.raises(ValueError, match="3 channels, not 2 from 2 on"):
        where("norm_neuron_backward_", y, none[None], one, one, one, one, p, 2)
    with pytest.raises(ValueError, match="3 channels, not 2 from 2 on"):
        where("grid_add_", None, y[0], one, one, 14, 1, none, 2)
    with pytest.raises(ValueError, match="bits has 3 channels, not 2 from -1 on"):
        where("norm_neuron_pack_", y, one, one, p, bits, 3, -1)
    with pytest.raises(ValueError, match="bits has shape"):
        where("norm_neuron_pack_", y, one, one, p, bits[:1], 3, 0)
