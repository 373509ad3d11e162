"""Frames as the tensors that a step is given: which samples, how they are moved, on which device."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from revedge.devices.augment import draw_shifts, epoch_order, shift_frames
from revedge.devices.loop_settings import Frames, Indices, LoopSettings
from revedge.errors import RevedgeError

Shifts = Indices | None


class Batches:
    """Every draw comes from (seed, epoch, step), so a resumed training sees the batches that it would have seen.

    Args:
        frames: both splits.
        settings: of the loop.

    Raises:
        RevedgeError: there is nothing to train on.
    """

    def __init__(self, frames: Frames, settings: LoopSettings) -> None:
        self.frames, self.settings = frames, settings
        count = len(frames.train_indices)
        if count == 0:
            raise RevedgeError(
                "the training split is empty; give a data folder with recordings in it"
            )
        self.batch_size = min(settings.batch_size, count)
        self.steps_per_epoch = count // self.batch_size
        self._order: tuple[int, npt.NDArray[Any]] | None = None

    def of_step(self, step: int) -> tuple[Indices, Shifts]:
        """Return the samples of a step, and by how much each is moved."""
        settings = self.settings
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = epoch_order(self.frames.train_indices, settings.seed, epoch)
            self._order = (epoch, order.astype(np.min_scalar_type(order.max())))  # kept for long
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        chosen = self._order[1][part].astype(np.int64)
        shifts = None
        if settings.augment_pixels:
            shifts = draw_shifts(len(chosen), settings.augment_pixels, settings.seed, epoch, step)
        return chosen, shifts

    def micro(self, chosen: Indices, shifts: Shifts) -> Iterator[tuple[Indices, Shifts]]:
        """Yield the micro-batches of a batch."""
        for begin in range(0, len(chosen), self.settings.micro_batch_size):
            part = slice(begin, begin + self.settings.micro_batch_size)
            yield chosen[part], None if shifts is None else shifts[part]

    def evaluation(self) -> Iterator[tuple[Indices, int]]:
        """Yield the test split in batches of the size of a micro-batch, and how many of each one were in the last.

        The last batch reaches back until it is as large as the others: for another size oneDNN would generate code and
        keep it, 0.2 to 0.5 MiB.
        """
        indices, size = self.frames.test_indices, self.settings.micro_batch_size
        for begin in range(0, len(indices), size):
            first = max(0, min(begin, len(indices) - size))
            yield indices[first : first + size], begin - first

    def tensors(self, indices: Indices, shifts: Shifts = None) -> tuple[Tensor, Tensor]:
        """Return float32 frames and labels of these samples on the device of the training."""
        frames, labels = self.frames.batch(indices)
        if shifts is not None:
            shift_frames(frames, shifts)
        device = self.settings.device
        inputs = torch.from_numpy(frames).to(device).to(torch.float32)
        return inputs.mul_(self.frames.scale), torch.from_numpy(labels).to(device)
