"""What a training loop is told, what it needs of its data, and where it stands."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Event = dict[str, Any]
Indices = npt.NDArray[np.int64]


class Frames(Protocol):
    """What the loop needs of `revedge.data.FrameCache`."""

    scale: float

    @property
    def train_indices(self) -> Indices:
        """Positions of the training samples."""
        ...

    @property
    def test_indices(self) -> Indices:
        """Positions of the test samples."""
        ...

    def batch(self, indices: Indices) -> tuple[npt.NDArray[np.uint8], Indices]:
        """Return frames [T, B, C, H, W] or [B, C, H, W] and labels [B]."""
        ...

    def drop_pages(self) -> None:
        """Give the pages read so far back."""
        ...


class Stopped(Exception):  # noqa: N818 - not an error: asked for
    """Training was asked to stop, and has, after a checkpoint at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


@dataclass(frozen=True)
class LoopSettings:
    """What the loop does; the memory that it takes grows with `micro_batch_size` only."""

    seed: int
    epochs: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    label_smoothing: float = 0.0
    augment_pixels: int = 0
    checkpoint_every_s: float = 5.0
    device: str = "cpu"
    warmup_steps: int = 0
    precision: str = "float32"  # of convolutions in training; evaluation is in float32
    update_in_backward: bool = False  # needs micro_batch_size == batch_size, and a net of runs


@dataclass
class Position:
    """Where a training stands; the JSON of a checkpoint."""

    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    evaluate_next: bool = False
    last_epoch: Event | None = None


def learning_rate_at(step: int, total_steps: int, peak: float, warmup_steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine towards 0 (arXiv 1608.03983)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * share))
