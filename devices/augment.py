"""Randomness of training, derived from (seed, epoch, step) and nothing else.

No generator state has to be stored: a training that resumes at a step draws what it would have drawn.
"""

import numpy as np
import numpy.typing as npt
import torch

WEIGHTS, _ORDER, _SHIFT, _STEP = 0, 1, 2, 3


def derive_seed(seed: int, purpose: int, epoch: int, step: int = 0) -> int:
    """Return 63 well-mixed bits of (seed, purpose, epoch, step), by splitmix64 (Steele et al. 2014)."""
    state = 0
    for word in (seed, purpose, epoch, step):
        state = _mix((state ^ (word & (2**64 - 1))) & (2**64 - 1))
    return state >> 1


def epoch_order(indices: npt.NDArray[np.int64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the training samples in the order of this epoch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, _ORDER, epoch))
    order = torch.randperm(len(indices), generator=generator).numpy()
    return np.ascontiguousarray(indices[order])


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Seed torch's own generators (dropout) for one step."""
    torch.manual_seed(derive_seed(seed, _STEP, epoch, step))


def draw_shifts(count: int, pixels: int, seed: int, epoch: int, step: int) -> npt.NDArray[np.int64]:
    """Return one (down, right) shift per sample of a step's whole batch, each from -pixels to pixels: [count, 2]."""
    generator = torch.Generator().manual_seed(derive_seed(seed, _SHIFT, epoch, step))
    return torch.randint(-pixels, pixels + 1, (count, 2), generator=generator).numpy()


def shift_frames(frames: npt.NDArray[np.uint8], shifts: npt.NDArray[np.int64]) -> None:
    """Shift each sample of frames [..., B, C, H, W] by whole pixels, in place; what comes in is 0.

    The extra memory is that of one sample.
    """
    height, width = frames.shape[-2:]
    for sample, (down, right) in enumerate(shifts.tolist()):
        if down == 0 and right == 0:
            continue
        view = frames[..., sample, :, :, :]
        old = view.copy()
        view[...] = 0
        if abs(down) < height and abs(right) < width:
            view[..., _to(down, height), _to(right, width)] = old[
                ..., _to(-down, height), _to(-right, width)
            ]


def _to(shift: int, size: int) -> slice:
    return slice(max(0, shift), size + min(0, shift))


def _mix(state: int) -> int:
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)
