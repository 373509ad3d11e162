"""The grid is exact, out of range is noticed, bits come back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import assert_same_bits

from revedge import kernels
from revedge.errors import GridRangeError
from revedge.kernels import reference

SHAPES = [(1, 1), (1, 3), (3, 1, 63), (5, 3, 100), (2, 2, 4097), (4, 3, 7, 7), (4, 8, 32, 32)]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_native_equals_reference(shape: tuple[int, ...], sign: int, threads: int) -> None:
    """Grid sums, with and without x, plain rounding, packing: same bits as the reference."""
    y = torch.randn(shape)
    y.view(-1)[0] = 0.5 * 2.0**-10  # half of a step, which rounds to even
    x = reference_round(torch.randn(shape), 10)
    scale, shift = torch.randn(shape[1]), torch.randn(shape[1])
    for base in (x, None):
        out, expected = torch.empty(shape), torch.empty(shape)
        expected_in_range = reference.grid_add_(base, y, scale, shift, 10, sign, expected)
        assert expected_in_range
        kernels.grid_add(base, y, scale, shift, bits=10, sign=sign, out=out)
        assert_same_bits(out, expected)
    assert_same_bits(kernels.grid_round(y, 10), reference_round(y, 10))
    s = (y > 0).float()
    assert_same_bits(kernels.pack_bits(s), reference.pack_bits(s))
    packed = reference.pack_bits(s)
    assert_same_bits(kernels.unpack_bits(packed, shape), reference.unpack_bits(packed, list(shape)))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("numel", [1, 8, 16, 24, 100, 65537])
def test_unpacking_by_any_vectors(numel: int, vector_bits: int) -> None:
    """Every width of vectors, and what is left over, gives the reference's floats."""
    packed = torch.randint(256, ((numel + 7) // 8,), dtype=torch.uint8)
    assert_same_bits(kernels.unpack_bits(packed, [numel]), reference.unpack_bits(packed, [numel]))


def reference_round(x: torch.Tensor, bits: int) -> torch.Tensor:
    out, none = torch.empty_like(x), x.new_empty(0)
    assert reference.grid_add_(None, x, none, none, bits, 1, out)
    return out


@settings(max_examples=200, deadline=None)
@given(
    xs=st.lists(st.floats(-255, 255, width=32), min_size=1, max_size=40),
    fs=st.lists(st.floats(-255, 255, width=32), min_size=40, max_size=40),
    bits=st.integers(8, 15),
)
def test_adding_and_undoing_changes_no_bit(xs: list[float], fs: list[float], bits: int) -> None:
    """x + round(f) - round(f) is x bit for bit, zeros included."""
    limit = 2.0 ** (23 - bits) / 255 * 0.49
    x = kernels.grid_round(torch.tensor(xs).reshape(1, 1, -1) * min(1.0, limit), bits)
    f = torch.tensor(fs[: len(xs)]).reshape(1, 1, -1) * min(1.0, limit)
    one, zero = torch.ones(1), torch.zeros(1)
    after = kernels.grid_add(x, f, one, zero, bits=bits)
    back = kernels.grid_add(after, f, one, zero, bits=bits, sign=-1, out=after)
    assert back is after
    assert_same_bits(back, x)


def test_rounds_half_to_even() -> None:
    """0.5, 1.5, 2.5 steps go to 0, 2, 2; and no -0.0 comes out."""
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -0.2, 0.0, -0.0]) / 2**14
    expected = torch.tensor([0.0, 2.0, 2.0, 0.0, -2.0, 0.0, 0.0, 0.0]) / 2**14
    assert_same_bits(kernels.grid_round(values), expected)


@pytest.mark.parametrize("bad", [512.0, -512.0, float("nan"), float("inf")])
def test_out_of_range_is_reported(bad: float, threads: int) -> None:
    """One bad value among many, the boundary itself and NaN raise, by either operator."""
    y = torch.zeros(4, 2, 20000)
    y[3, 1, 19999] = bad
    with pytest.raises(GridRangeError, match="left the range of the grid"):
        kernels.grid_round(y)
    with pytest.raises(GridRangeError):
        kernels.grid_add(torch.zeros_like(y), y, torch.ones(2), torch.zeros(2))
    y[3, 1, 19999] = 511.99
    kernels.grid_round(y)


@pytest.mark.parametrize("numel", [0, 1, 3, 7, 8, 9, 63, 100, 4097, 140001])
def test_bits_round_trip(numel: int, threads: int) -> None:
    """Packed spikes come back exactly, at one bit each, lowest bit first."""
    s = (torch.rand(numel) < 0.3).float()
    bits = kernels.pack_bits(s)
    assert bits.numel() == (numel + 7) // 8
    assert_same_bits(kernels.unpack_bits(bits, s.shape), s)
    assert kernels.pack_bits(torch.tensor([0.0, 1.0, 0.0, 1.0])).tolist() == [10]


def test_slices_at_bytes_unpack() -> None:
    """A part that starts at a byte can be unpacked alone."""
    s = (torch.rand(6, 16) < 0.5).float()
    bits = kernels.pack_bits(s)
    assert_same_bits(kernels.unpack_bits(bits[4:8], (2, 16)), s[2:4])


def test_too_few_bits_are_refused() -> None:
    """A shape larger than the bits is an error, not a read past the end."""
    with pytest.raises(ValueError, match="1 bytes of spikes"):
        kernels.unpack_bits(torch.zeros(1, dtype=torch.uint8), (3, 3))
