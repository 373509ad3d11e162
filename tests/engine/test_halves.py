"""The halves of a stream in the memory of the stream."""

import pytest
import torch
from engine_checks import small_branch

from revedge.engine import Coupling
from revedge.engine.halves import copies, merge, split
from revedge.engine.run import Given


@pytest.mark.parametrize("shape", [(3, 5, 6, 7, 9), (1, 1, 2), (2, 3, 4), (4, 2, 64, 48, 32)])
def test_halves_change_places_within_the_stream(shape):
    """Split and merge move, they neither copy nor change; one shape is moved in several pieces."""
    x = torch.randn(shape)
    stream, half = x.clone(), shape[2] // 2
    halves = split(Given(stream, free=True))
    assert torch.equal(halves[0], x[:, :, :half])
    assert torch.equal(halves[1], x[:, :, half:])
    assert all(each.is_contiguous() for each in halves)
    assert halves[0].data_ptr() == stream.data_ptr()
    merged = merge(halves)
    assert torch.equal(merged, x)
    assert merged.data_ptr() == stream.data_ptr()


def test_a_stream_that_others_read_is_left_alone():
    """What is not free is copied first; halves that lie elsewhere are put together in new memory."""
    x = torch.randn(2, 3, 4, 5)
    before = x.clone()
    first, second = split(Given(x, free=False))
    assert torch.equal(x, before)
    for halves in ([first.clone(), second], [second, first], [first, first]):
        assert torch.equal(merge(list(halves)), torch.cat(halves, 2))
    assert torch.equal(merge([first, second]), before)


@pytest.mark.parametrize("planes", [(1, 1), (2, 3)])
def test_a_coupling_never_writes_to_its_input(planes):
    """Not even to one of a single plane, whose halves are contiguous as they are."""
    x = torch.round(torch.randn(*planes, 4, 8, 8) * 2**14) / 2**14
    before = x.clone()
    for each in copies(x):
        assert each.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    Coupling([small_branch(2)], [small_branch(2)], on_grid=True)(x)
    assert torch.equal(x, before)
