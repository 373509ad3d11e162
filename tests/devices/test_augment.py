"""Randomness comes from (seed, epoch, step) only; shifting moves whole pixels and fills with zero."""

import itertools

import numpy as np
import pytest
import torch

from revedge.devices import augment


def test_seeds_differ_in_every_argument() -> None:
    """No two of a grid of (seed, purpose, epoch, step) collide, negative seeds included."""
    grid = itertools.product((-1, 0, 1, 2**40), (0, 1, 2, 3), range(5), range(20))
    seeds = [augment.derive_seed(*words) for words in grid]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_order_is_of_seed_and_epoch() -> None:
    """The same seed and epoch give the same permutation, whatever was drawn before; others another."""
    indices = np.arange(100, 150)
    first = augment.epoch_order(indices, 1, 0)
    torch.rand(7)
    assert np.array_equal(first, augment.epoch_order(indices, 1, 0))
    assert sorted(first) == list(indices)
    assert not np.array_equal(first, augment.epoch_order(indices, 1, 1))
    assert not np.array_equal(first, augment.epoch_order(indices, 2, 0))


def test_dropout_of_a_step_is_drawn_again() -> None:
    """Seeding a step gives torch's generator the same numbers, whatever came before."""
    augment.seed_step(1, 2, 3)
    first = torch.rand(5)
    torch.rand(11)
    augment.seed_step(1, 2, 3)
    assert torch.equal(first, torch.rand(5))


@pytest.mark.parametrize("shape", [(3, 4, 2, 6, 7), (4, 2, 6, 7)])
def test_shifts_move_every_frame_of_a_sample_alike(shape: tuple[int, ...]) -> None:
    """Each sample is np.roll with what wraps around set to 0, also beyond the frame's size."""
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 255, shape).astype(np.uint8)
    shifts = np.array([[0, 0], [2, -1], [-3, 2], [9, 0]])
    expected = np.zeros_like(frames)
    height, width = shape[-2:]
    for b, (down, right) in enumerate(shifts):
        for y, x in itertools.product(range(height), range(width)):
            if 0 <= y + down < height and 0 <= x + right < width:
                expected[..., b, :, y + down, x + right] = frames[..., b, :, y, x]
    augment.shift_frames(frames, shifts)
    assert np.array_equal(frames, expected)


def test_drawn_shifts_stay_in_range_and_use_it() -> None:
    """Shifts are from -2 to 2 in both directions, all of them drawn."""
    shifts = augment.draw_shifts(1000, 2, 0, 0, 0)
    assert shifts.shape == (1000, 2)
    assert set(shifts.ravel().tolist()) == {-2, -1, 0, 1, 2}
