"""C neurons equal the PyTorch reference bit for bit."""

import pytest
import torch
from kernel_checks import assert_same_bits, name_of, neuron_variants
from torch import Tensor

from revedge import kernels
from revedge.kernels import NeuronParams, reference

pytestmark = pytest.mark.usefixtures("native")
VARIANTS = neuron_variants()
NEURONS = [1, 3, 63, 100, 4097]
# (B, C, plane): every size of plane, one and three channels, blocks that a plane does not fill.
PLANES = [(1, 1, 1), (3, 3, 1), (2, 3, 9), (2, 1, 49), (2, 3, 49), (2, 3, 1024), (1, 2, 4097)]


def check_neuron(p: NeuronParams, x: Tensor, *, with_state: bool) -> None:
    v0 = torch.randn(x.shape[1:]) if with_state else None
    s, v = kernels.neuron_forward(x, v0, p)
    s_expected, v_expected = reference.neuron_forward(x, v0, p)
    assert_same_bits(s, s_expected)
    assert_same_bits(v, v_expected)

    g = torch.randn_like(x)
    g_v = torch.randn(x.shape[1:]) if with_state else None
    g_expected = g.clone()
    g_x, g_v0, g_leak = kernels.neuron_backward_(x, v0, g, g_v, p)
    g_v0_expected, g_leak_expected = reference.neuron_backward_(x, v0, g_expected, g_v, p)
    assert g_x is g
    assert_same_bits(g_x, g_expected)
    assert_same_bits(g_v0, g_v0_expected)
    assert (g_leak is not None) == p.learns_leak
    if g_leak is not None:
        assert_same_bits(g_leak, g_leak_expected)


@pytest.mark.parametrize("p", VARIANTS, ids=name_of)
def test_every_variant(p: NeuronParams, threads: int) -> None:
    """All surrogates, resets, detachments and leaks, on a size that needs several blocks."""
    check_neuron(p, torch.randn(7, 4097) * 1.5, with_state=True)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("neurons", NEURONS)
@pytest.mark.parametrize("with_state", [False, True])
def test_every_size(neurons: int, steps: int, with_state: bool, threads: int) -> None:
    """Odd sizes, from one neuron on."""
    for p in (VARIANTS[3], VARIANTS[-1]):
        check_neuron(p, torch.randn(steps, neurons) * 1.5, with_state=with_state)


@pytest.mark.parametrize("surrogate", kernels.SURROGATES)
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_exactly_on_the_threshold(surrogate: str, v_reset: float | None) -> None:
    """Multiples of 1/4 meet the threshold, and the edges of the surrogates, exactly."""
    p = NeuronParams(
        decay=1.0, gain=1.0, v_reset=v_reset, surrogate=surrogate, alpha=1.0, detach_reset=False
    )
    x = torch.randint(-4, 8, (7, 500)) / 4
    check_neuron(p, x, with_state=False)
    check_norm_neuron(p, x.reshape(7, 5, 2, 50), with_state=False, unit_norm=True)
    s, _ = kernels.neuron_forward(torch.tensor([[1.0, 0.75]]), None, p)
    assert s.tolist() == [[1.0, 0.0]]


def test_threads_share_large_work(threads: int) -> None:
    """Enough work that two threads really run; a shape with several dimensions."""
    check_neuron(VARIANTS[3], torch.randn(5, 3, 7, 31, 33), with_state=True)


def check_norm_neuron(
    p: NeuronParams, y: Tensor, *, with_state: bool, unit_norm: bool = False
) -> None:
    channels = y.shape[2]
    weight, bias = torch.randn(channels), torch.randn(channels) * 0.3
    mean, var = kernels.channel_stats(y.flatten(0, 1))
    if unit_norm:  # scale 1 and shift 0: the values stay where they are
        weight, bias = torch.ones(channels), torch.zeros(channels)
        mean, var = torch.zeros(channels), torch.full((channels,), 1 - 1e-5)
    scale, shift, inv_std = kernels.norm_affine(mean, var, weight, bias, 1e-5)
    v0 = torch.randn(y.shape[1:]) if with_state else None
    s_expected, v_expected = reference.norm_neuron_forward(y, scale, shift, v0, p, False)
    s, v = kernels.norm_neuron_forward(y, scale, shift, v0, p)
    assert_same_bits(s, s_expected)
    assert_same_bits(v, v_expected)
    packed, v = kernels.norm_neuron_forward(y, scale, shift, v0, p, pack=True)
    assert_same_bits(packed, reference.pack_bits(s_expected))
    assert_same_bits(v, v_expected)

    g = torch.randn_like(y)
    state = (torch.randn(y.shape[1:]), torch.rand(y.shape[1:]) if p.learns_leak else None)
    for g_vT, leak in ((None, None), state):
        g_span, g_span_expected = g.clone(), g.clone()
        found = kernels.norm_neuron_span_backward_(y, scale, shift, v0, g_span, g_vT, p, leak=leak)[
            1:
        ]
        expected = reference.norm_neuron_span_backward_(
            y, scale, shift, v0, g_span_expected, g_vT, p, leak
        )
        assert_same_bits(g_span, g_span_expected)
        for value, value_expected in zip(found, expected, strict=True):
            if value is not None:
                assert_same_bits(value, value_expected)
    g_expected, g_composed = g.clone(), g.clone()
    results = kernels.norm_neuron_backward_(y, g, mean, inv_std, weight, bias, p)
    expected = reference.norm_neuron_backward_(y, g_expected, mean, inv_std, weight, bias, p)
    assert_same_bits(g, g_expected)
    for value, value_expected in zip(results, expected, strict=True):
        if value is not None:
            assert_same_bits(value, value_expected)

    z = kernels.norm_forward(y.flatten(0, 1), scale, shift).reshape(y.shape)
    kernels.neuron_backward_(z, None, g_composed, None, p)
    g_weight, g_bias = kernels.norm_backward_(
        y.flatten(0, 1), g_composed.flatten(0, 1), mean, inv_std, weight
    )
    assert_same_bits(g_composed, g)
    assert_same_bits(g_weight, results[0])
    assert_same_bits(g_bias, results[1])


@pytest.mark.parametrize("p", VARIANTS[::3], ids=name_of)
@pytest.mark.parametrize("plane", [9, 49])
def test_norm_neuron_variants(p: NeuronParams, plane: int, threads: int) -> None:
    """The fused operators, on small and large planes, equal the reference and the composition."""
    check_norm_neuron(p, torch.randn(3, 2, 3, plane) * 2 + 0.5, with_state=True)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("size", PLANES, ids=str)
@pytest.mark.parametrize("with_state", [False, True])
def test_norm_neuron_sizes(
    size: tuple[int, int, int], steps: int, with_state: bool, threads: int
) -> None:
    """Channels of one, planes of one, planes larger than a block, bits that share bytes."""
    check_norm_neuron(VARIANTS[3], torch.randn(steps, *size), with_state=with_state)


def test_norm_neuron_threads_share_bytes(threads: int) -> None:
    """Two threads write bits of one byte: planes of 49 start anywhere in it."""
    check_norm_neuron(VARIANTS[0], torch.randn(4, 8, 64, 7, 7), with_state=False)


def test_without_dimensions_after_channels(threads: int) -> None:
    """Behind a linear layer there is nothing after the channels."""
    check_norm_neuron(VARIANTS[0], torch.randn(4, 5, 6), with_state=False)


@pytest.mark.parametrize("neurons", [1, 3, 8, 63, 72, 100, 4097, 4104, 8192])
def test_packed_spikes_are_the_spikes(neurons: int, threads: int, vector_bits: int) -> None:
    """Bits that leave the kernel directly are those of its float32 spikes, where blocks start off a byte, too."""
    x = torch.randn(5, neurons) * 1.5
    x[2] = 1.0  # on the threshold of the second neuron, if the membrane is at rest
    for p in (NeuronParams(decay=0.5, gain=0.5), NeuronParams(decay=1.0, gain=1.0, v_reset=None)):
        s, v = reference.neuron_forward(x, None, p)
        bits, v_packed = kernels.neuron_forward(x, None, p, pack=True)
        assert torch.equal(bits, reference.pack_bits(s))
        assert_same_bits(v_packed, v)
        bits, nothing = kernels.neuron_forward(x, None, p, pack=True, state=False)
        assert torch.equal(bits, reference.pack_bits(s))
        assert nothing.numel() == 0


@pytest.mark.parametrize("plane", [1, 3, 8, 49, 64, 72, 4104])
def test_packed_spikes_behind_a_norm(plane: int, vector_bits: int) -> None:
    """One scale for a plane, and one for each of the neurons of a row of small planes."""
    y, scale, shift = torch.randn(4, 3, 5, plane), torch.rand(5) + 0.5, torch.randn(5)
    for p in (NeuronParams(decay=0.5, gain=0.5), NeuronParams(decay=1.0, gain=1.0, v_reset=None)):
        s, _ = reference.norm_neuron_forward(y, scale, shift, None, p, False)
        bits, _ = kernels.norm_neuron_forward(y, scale, shift, None, p, pack=True, state=False)
        assert torch.equal(bits, reference.pack_bits(s))


def test_gradients_without_the_state(threads: int) -> None:
    """Who does not ask for the gradient of the first membrane gets the same gradients without it."""
    for p in (VARIANTS[3], VARIANTS[2]):
        x, g = torch.randn(7, 4097), torch.randn(7, 4097)
        g_expected = g.clone()
        _, _, leak_expected = kernels.neuron_backward_(x, None, g_expected, None, p)
        _, nothing, g_leak = kernels.neuron_backward_(x, None, g, None, p, state=False)
        assert nothing.numel() == 0
        assert_same_bits(g, g_expected)
        if leak_expected is not None and g_leak is not None:
            assert_same_bits(g_leak, leak_expected)


SLABS = [(0, 2), (2, 3), (5, 1), (6, 1)]


@pytest.mark.parametrize("plane", [1, 3, 8, 49, 64, 1024])
@pytest.mark.parametrize("p", VARIANTS[3::12], ids=name_of)
def test_slabs_of_channels(p: NeuronParams, plane: int, threads: int) -> None:
    """Channel by channel, or a few at a time: the bits are those of all channels at once."""
    y = torch.randn(4, 3, 7, plane) * 1.5
    weight, bias = torch.rand(7) + 0.5, torch.randn(7) * 0.3
    mean, var = kernels.channel_stats(y.flatten(0, 1))
    scale, shift, inv_std = kernels.norm_affine(mean, var, weight, bias, 1e-5)
    expected, _ = kernels.norm_neuron_forward(y, scale, shift, None, p, pack=True)
    g = torch.randn_like(y)
    g_norm, g_expected, g_norm_expected = g.clone(), g.clone(), g.clone()
    all_expected = kernels.norm_neuron_backward_(y, g_expected, mean, inv_std, weight, bias, p)
    norm_expected = kernels.norm_backward_(
        y.flatten(0, 1), g_norm_expected.flatten(0, 1), mean, inv_std, weight
    )
    stream = torch.randn(12, 7, plane).mul_(100).round_().div_(128)
    stream_expected = kernels.grid_add(stream, y.flatten(0, 1), scale, shift, sign=-1)

    bits = torch.zeros_like(expected)
    for first, count in SLABS:
        part = slice(first, first + count)
        y_slab = y[:, :, part].contiguous()
        y_flat = y_slab.flatten(0, 1)
        assert_same_bits(kernels.channel_stats(y_flat)[1], var[part])
        kernels.norm_neuron_pack_(
            y_slab, scale[part], shift[part], p, bits, channels=7, first=first
        )
        norm = (mean[part], inv_std[part], weight[part])
        found = kernels.norm_neuron_backward_(y_slab, g, *norm, bias[part], p, first=first)
        for value, whole in zip(found[:2], all_expected[:2], strict=True):
            assert_same_bits(value, whole[part])
        g_leak, g_leak_expected = found[2], all_expected[2]
        assert (g_leak is not None) == p.learns_leak
        if g_leak is not None and g_leak_expected is not None:
            assert_same_bits(g_leak, g_leak_expected[:, part].contiguous())
        found = kernels.norm_backward_(y_flat, g_norm.flatten(0, 1), *norm, first=first)
        assert_same_bits(found[0], norm_expected[0][part])
        kernels.grid_add(stream, y_flat, scale[part], shift[part], sign=-1, out=stream, first=first)
    assert torch.equal(bits, expected)
    assert_same_bits(g, g_expected)
    assert_same_bits(g_norm, g_norm_expected)
    assert_same_bits(stream, stream_expected)


def test_a_slab_that_does_not_fit() -> None:
    """Channels outside of the tensor are an error, not a write somewhere else."""
    y, one = torch.zeros(1, 1, 2, 4), torch.ones(2)
    with pytest.raises(ValueError, match="3 channels, not 2 from 2 on"):
        kernels.norm_backward_(y[0], torch.zeros(1, 3, 4), one, one, one, first=2)
    with pytest.raises(ValueError, match="bits has 3 channels, not 2 from -1 on"):
        kernels.norm_neuron_pack_(
            y, one, one, VARIANTS[0], torch.zeros(2, dtype=torch.uint8), channels=3, first=-1
        )


@pytest.mark.parametrize("plane", [3, 64])
def test_slabs_by_the_reference(plane: int) -> None:
    """The reference, too, writes a slab and leaves the other channels alone."""
    p, y = VARIANTS[3], torch.randn(3, 2, 4, plane)
    weight, bias, mean, inv_std = (torch.rand(2) + 0.5 for _ in range(4))
    g, g_reference = (torch.ones(3, 2, 5, plane) for _ in range(2))
    part = y[:, :, 1:3].contiguous()
    kernels.norm_neuron_backward_(part, g, mean, inv_std, weight, bias, p, first=2)
    reference.norm_neuron_backward_(part, g_reference, mean, inv_std, weight, bias, p, first=2)
    assert_same_bits(g, g_reference)
    bits, bits_reference = (
        torch.zeros((3 * 2 * 5 * plane + 7) // 8, dtype=torch.uint8) for _ in range(2)
    )
    kernels.norm_neuron_pack_(part, weight, bias, p, bits, channels=5, first=2)
    reference.norm_neuron_pack_(part, weight, bias, p, bits_reference, 5, 2)
    assert torch.equal(bits, bits_reference)


@pytest.mark.parametrize("p", VARIANTS[::7], ids=name_of)
def test_one_step_repeated(p: NeuronParams, threads: int) -> None:
    """An image expanded over time is read in place, and gives what its copies give."""
    x = torch.randn(1, 3, 1371).mul_(1.5).expand(5, 3, 1371)
    copies = x.contiguous()
    for pack in (False, True):
        s, v = kernels.neuron_forward(x, None, p, pack=pack)
        s_expected, v_expected = kernels.neuron_forward(copies, None, p, pack=pack)
        assert_same_bits(s, s_expected)
        assert_same_bits(v, v_expected)
    g = torch.randn(5, 3, 1371)
    expected = kernels.neuron_backward(copies, None, g, None, p)
    for found in (
        kernels.neuron_backward(x, None, g, None, p),
        kernels.neuron_backward_(x, None, g.clone(), None, p),
    ):
        for value, value_expected in zip(found, expected, strict=True):
            if value_expected is not None and value is not None:
                assert_same_bits(value, value_expected)


@pytest.mark.parametrize(
    "p", VARIANTS[::7] + [v for v in VARIANTS if v.learns_leak][:4], ids=name_of
)
def test_backward_in_spans(p: NeuronParams, threads: int) -> None:
    """Spans of time, from the last to the first, give the bits of all steps at once, the leak's gradient included."""
    x, g = torch.randn(7, 3, 91) * 1.5, torch.randn(7, 3, 91)
    expected = g.clone()
    _, g_v0_expected, leak_expected = kernels.neuron_backward_(x, None, expected, None, p)
    before = [None, *(kernels.neuron_forward(x[:t], None, p)[1] for t in (2, 5))]
    g_v, leak = None, None
    for v, part in zip(reversed(before), (slice(5, 7), slice(2, 5), slice(0, 2)), strict=True):
        _, g_v, leak = kernels.neuron_backward_(x[part], v, g[part], g_v, p, leak=leak)
    assert_same_bits(g, expected)
    assert g_v is not None
    assert_same_bits(g_v, g_v0_expected)
    assert (leak is None) == (leak_expected is None)
    if leak is not None and leak_expected is not None:
        assert_same_bits(leak, leak_expected)
