"""Batch norm, neuron and pool in one sweep equal their parts in turn, bit for bit."""

import pytest
import torch
from kernel_checks import assert_same_bits, name_of, neuron_variants

from revedge import kernels
from revedge.kernels import NeuronParams, Window, reference

VARIANTS = neuron_variants()
# kernel, stride, padding; the first is the one with code of its own
WINDOWS = [
    ((2, 2), (2, 2), (0, 0)),
    ((3, 3), (2, 2), (1, 1)),
    ((3, 2), (1, 3), (1, 0)),
    ((2, 2), (3, 3), (1, 1)),
]
SIZES = [(1, 1, 1, 2, 2), (4, 2, 3, 5, 7), (3, 2, 5, 8, 8), (5, 3, 2, 33, 31), (4, 2, 9, 32, 32)]


def check(y: torch.Tensor, p: NeuronParams, window: Window) -> None:
    """Compare with pool after neuron after norm, whole and in slabs of channels."""
    steps, batch, channels = y.shape[:3]
    weight, bias = torch.rand(channels) + 0.5, torch.randn(channels) * 0.3
    mean, var = kernels.channel_stats(y.flatten(0, 1))
    scale, shift, inv_std = kernels.norm_affine(mean, var, weight, bias, 1e-5)
    s, _ = reference.norm_neuron_forward(y, scale, shift, None, p, False)
    flat, ints = s.flatten(0, 1), window.as_ints()
    if window.average:
        pooled = torch.nn.functional.avg_pool2d(flat, *window[:3])
        assert_same_bits(kernels.average_bits(kernels.pack_bits(s), flat.shape, window), pooled)
    else:
        pooled = torch.max_pool2d(flat, *window[:3])
    assert pooled.shape[2:] == window.pooled(y.shape[3], y.shape[4])
    g_pooled = torch.randn_like(pooled).view(steps, batch, channels, *pooled.shape[2:])
    g_pooled[..., 0] = -0.0
    norm = [mean, inv_std, weight, bias]
    g_expected = torch.empty_like(y)
    expected = reference.norm_neuron_pool_backward_(
        y, g_pooled, g_expected, norm, p, 0, ints, window.average
    )
    g, bits = torch.empty_like(y), torch.zeros((pooled.numel() + 7) // 8, dtype=torch.uint8)
    half = channels // 2
    for part in (slice(0, half), slice(half, channels)):
        slab, first = y[:, :, part].contiguous(), part.start
        if not window.average:
            kernels.norm_neuron_pool_(
                slab, scale[part], shift[part], p, bits, window, channels=channels, first=first
            )
        found = kernels.norm_neuron_pool_backward_(
            slab, g_pooled, g, [value[part] for value in norm], p, window, first=first
        )
        for value, whole in zip(found[:2], expected[:2], strict=True):
            assert_same_bits(value, whole[part])
        assert (found[2] is not None) == p.learns_leak
        if found[2] is not None:
            assert_same_bits(found[2], expected[2][:, part].contiguous())
    assert_same_bits(g, g_expected)
    same = y.clone()
    kernels.norm_neuron_pool_backward_(same, g_pooled, same, norm, p, window)
    assert_same_bits(same, g_expected)
    if not window.average:
        assert torch.equal(bits, kernels.pack_bits(pooled))


@pytest.mark.parametrize("average", [False, True], ids=["max", "mean"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_windows_and_sizes(
    size: tuple[int, ...], window: tuple[tuple[int, int], ...], average: bool, threads: int
) -> None:
    """Windows that halve, overlap or leave gaps; planes of even and odd sizes, whose bits share bytes."""
    check(torch.randn(size) * 1.5, VARIANTS[3], Window(window[0], window[1], window[2], average))


@pytest.mark.parametrize("plane", [(8, 8), (4, 16), (16, 24), (2, 8)], ids=str)
def test_vectors(plane: tuple[int, int], vector_bits: int) -> None:
    """Whatever vectors the machine has: rows of whole bytes, and planes that fill whole vectors or do not."""
    check(torch.randn(4, 2, 3, *plane) * 1.5, VARIANTS[3], Window((2, 2), (2, 2), (0, 0), False))


@pytest.mark.parametrize("average", [False, True], ids=["max", "mean"])
@pytest.mark.parametrize("repeated", [False, True], ids=["steps", "one-step"])
def test_without_a_norm(repeated: bool, average: bool) -> None:
    """A neuron and a pool alone; an image that stands for every step is read as it is."""
    p, window = VARIANTS[3], Window((2, 2), (2, 2), (0, 0), average)
    y = torch.randn(4, 2, 3, 7, 6) * 1.5
    y = y[:1].expand(y.shape) if repeated else y
    g_pooled = torch.randn(4, 2, 3, 3, 3)
    g, g_expected = (torch.empty(4, 2, 3, 7, 6) for _ in range(2))
    found = kernels.norm_neuron_pool_backward_(y, g_pooled, g, [], p, window)
    args = (y, g_pooled, g_expected, [], p, 0, window.as_ints(), average)
    expected = reference.norm_neuron_pool_backward_(*args)
    assert_same_bits(g, g_expected)
    assert found[0].numel() == found[1].numel() == 0
    assert found[2] is not None
    assert_same_bits(found[2], expected[2])
    if not average:
        bits, bits_expected = (torch.zeros(27, dtype=torch.uint8) for _ in range(2))
        kernels.norm_neuron_pool_(y, None, None, p, bits, window, channels=3)
        reference.norm_neuron_pool_(y, None, None, p, bits_expected, 3, 0, window.as_ints())
        assert torch.equal(bits, bits_expected)


@pytest.mark.parametrize("p", VARIANTS, ids=name_of)
def test_neurons(p: NeuronParams) -> None:
    """Every surrogate, reset, detachment and kind of leak."""
    check(torch.randn(5, 2, 3, 6, 6) * 1.5, p, Window((2, 2), (2, 2), (0, 0), False))


def test_what_no_window_can_be() -> None:
    """Too much padding, a mean asked for as bits, and bits that are too few, are errors."""
    y, one = torch.zeros(1, 1, 2, 4, 4), torch.ones(2)
    bits = torch.zeros(1, dtype=torch.uint8)
    p, halves = VARIANTS[0], Window((2, 2), (2, 2), (0, 0), False)
    with pytest.raises(ValueError, match="means are not bits"):
        kernels.norm_neuron_pool_(y, one, one, p, bits, halves._replace(average=True), channels=2)
    with pytest.raises(ValueError, match="bits has 1 channels, not 2 from 0 on"):
        kernels.norm_neuron_pool_(y, one, one, p, bits, halves, channels=1)
    with pytest.raises(ValueError, match="at most 1"):
        kernels.norm_neuron_pool_backward_(
            y, y, y, [one] * 4, p, Window((2, 2), (2, 2), (2, 2), False)
        )
    with pytest.raises(ValueError, match="hold no"):
        kernels.average_bits(bits, (1, 1, 4, 4), halves)
