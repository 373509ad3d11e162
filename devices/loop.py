"""The training loop: micro-batches, one optimizer step, evaluation, checkpoints. Knows nothing of processes.

Everything it draws comes from (seed, epoch, step) and everything it carries is in its checkpoint, so a training that
is cut anywhere and resumed ends with the same bits.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revedge import allocator
from revedge.devices.augment import draw_shifts, epoch_order, seed_step, shift_frames
from revedge.devices.checkpoint import CheckpointStore
from revedge.devices.optimizer import Optimizer
from revedge.engine import update_in_backward
from revedge.engine.autocast import computing_in
from revedge.errors import RevedgeError

_PAUSE_S = 0.05  # between two looks whether a pause is over
_TIMED_STEPS = 12  # the first of a process, whose times are reported

Event = dict[str, Any]
Indices = npt.NDArray[np.int64]


class Frames(Protocol):
    """What the loop needs of `revedge.data.FrameCache`."""

    train_indices: Indices
    test_indices: Indices
    scale: float

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


class TrainingLoop:
    """Trains `model` on `frames`.

    Args:
        model: [T, B, C, H, W] or [B, C, H, W] float -> logits [B, K].
        optimizer: over the model's parameters.
        store: where checkpoints go and come from.
        report: takes events (JSON-able dicts with "event").
        should_stop: asked after every step and every evaluation batch.
        watch: called between micro-batches; may raise MemoryError.
        before_step: called with the number of each step before it is taken.
        paused: asked where the loop holds no activations; while true it does nothing, with a checkpoint written.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        frames: Frames,
        settings: LoopSettings,
        store: CheckpointStore,
        *,
        report: Callable[[Event], None],
        should_stop: Callable[[], bool] = lambda: False,
        watch: Callable[[], None] = lambda: None,
        before_step: Callable[[int], None] = lambda step: None,
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.optimizer, self.frames = model, optimizer, frames
        self.settings, self.store = settings, store
        self.report, self.should_stop, self.watch = report, should_stop, watch
        self.before_step, self.paused = before_step, paused
        count = len(frames.train_indices)
        if count == 0:
            raise RevedgeError(
                "the training split is empty; give a data folder with recordings in it"
            )
        self.batch_size = min(settings.batch_size, count)
        self.steps_per_epoch = count // self.batch_size
        self.total_steps = self.steps_per_epoch * settings.epochs
        self.position = Position()
        self._dtype: torch.dtype = getattr(torch, settings.precision)
        self._order: tuple[int, Indices] | None = None
        self._saved_s = time.monotonic()
        self._saved_step = -1
        self._reported_s = 0.0
        self._steps_s: list[float] = []

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint holds: live tensors, not copies."""
        model = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state = self.optimizer.state_tensors()
        return model | {f"optimizer.{name}": tensor for name, tensor in state.items()}

    def restore(self) -> None:
        """Go to the newest good checkpoint, or stay at the start if there is none.

        Raises:
            CheckpointError: there are checkpoints, but none can be used.
        """
        loaded = self.store.load(self.tensors())
        for problem in loaded.problems:
            self.report(
                {"event": "warning", "text": f"{problem}; the checkpoint before it is used"}
            )
        if loaded.state is not None:
            self.position = Position(**loaded.state)
            self._saved_step = self.position.step

    def warm_up(self) -> None:
        """Run forward and backward once on two samples and undo what that changed.

        Libraries load code and make their thread pools at the first call of an operator; that belongs to the base
        of the process, which is measured after this.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.model.train()
        count = min(2, self.settings.micro_batch_size, len(self.frames.train_indices))
        if self.settings.update_in_backward:  # gradients are dropped one by one
            update_in_backward(self.model, lambda parameter, gradient: None)
        self._micro_batch(self.frames.train_indices[:count], None, count)
        self.optimizer.zero_grad()
        with torch.no_grad():
            if self._dtype != torch.float32:  # evaluation needs other code than training
                self.model.eval()
                self.model(self._batch(self.frames.train_indices[:count], None)[0])
            for buffer, before in buffers:
                buffer.copy_(before)

    def run(self) -> Event:
        """Train to the end and return the last epoch's metrics.

        Raises:
            Stopped: `should_stop` said so; a checkpoint is written.
            RevedgeError: the loss is not finite.
        """
        position = self.position
        while position.step < self.total_steps or position.evaluate_next:
            if position.evaluate_next:
                self._end_epoch()
                continue
            began_s = time.monotonic()
            self._train_step()
            self._time_step(time.monotonic() - began_s)
            position.evaluate_next = position.step % self.steps_per_epoch == 0
            self._pause()
            if self.should_stop():
                self._stop()
            due = time.monotonic() - self._saved_s >= self.settings.checkpoint_every_s
            if due or position.evaluate_next:
                self.save()
        assert position.last_epoch is not None
        return position.last_epoch

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint; when that fails say so and go on with the older one, unless it `must` succeed."""
        position = self.position
        if not self._finite():
            raise RevedgeError(
                f"weights are not finite after step {position.step}; use a smaller --lr (now "
                f"{self.settings.learning_rate:g}); the last good checkpoint is of step {max(0, self._saved_step)}"
            )
        try:
            state = {k: v for k, v in vars(position).items() if k != "step"}
            self.store.save(position.step, self.tensors(), state)
        except OSError as error:
            text = f"the checkpoint of step {position.step} could not be written ({error.strerror})"
            if must:
                raise RevedgeError(
                    f"{text}; the last good one (step {self._saved_step}) is kept: free some space, then "
                    "continue with --resume"
                ) from None
            self.report(
                {
                    "event": "warning",
                    "text": f"{text}; the last good one is kept and training goes on",
                }
            )
        else:
            self._saved_step = position.step
            self.report({"event": "checkpoint", "step": position.step})
        self._saved_s = time.monotonic()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Return (mean cross entropy, accuracy) over the test split, in batches of the micro-batch size."""
        self.model.eval()
        indices, size = self.frames.test_indices, self.settings.micro_batch_size
        loss, correct = 0.0, 0
        for begin in range(0, len(indices), size):
            inputs, labels = self._batch(indices[begin : begin + size], None)
            logits = self.model(inputs)
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
            del inputs, labels, logits
            self.frames.drop_pages()
            self.watch()
            self._pause()
            if self.should_stop():
                self._stop()
        return loss / max(1, len(indices)), correct / max(1, len(indices))

    def _train_step(self) -> None:
        settings, position = self.settings, self.position
        epoch, index = divmod(position.step, self.steps_per_epoch)
        if index == 0:
            position.loss_sum, position.correct, position.seen = 0.0, 0, 0
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(self.frames.train_indices, settings.seed, epoch))
        chosen = self._order[1][index * self.batch_size : (index + 1) * self.batch_size]
        shifts = None
        if settings.augment_pixels:
            shifts = draw_shifts(
                len(chosen), settings.augment_pixels, settings.seed, epoch, position.step
            )
        seed_step(settings.seed, epoch, position.step)
        self.before_step(position.step)
        self.model.train()
        rate = learning_rate_at(
            position.step, self.total_steps, settings.learning_rate, settings.warmup_steps
        )
        if settings.update_in_backward:
            update_in_backward(self.model, lambda p, g: self.optimizer.update_now(p, g, rate))
        batch_loss, correct = 0.0, 0
        for begin in range(0, len(chosen), settings.micro_batch_size):
            part = slice(begin, begin + settings.micro_batch_size)
            loss, right = self._micro_batch(
                chosen[part], None if shifts is None else shifts[part], len(chosen)
            )
            batch_loss += loss
            correct += right
            self.watch()
        self.optimizer.step(rate)  # of what was not updated in backward
        self.optimizer.zero_grad()
        position.step += 1
        position.loss_sum += batch_loss * len(chosen)
        position.correct += correct
        position.seen += len(chosen)
        now = time.monotonic()
        if now - self._reported_s >= 0.2:
            self._reported_s = now
            self.report({"event": "step", "step": position.step, "loss": batch_loss, "lr": rate})

    def _time_step(self, step_s: float) -> None:
        if len(self._steps_s) == _TIMED_STEPS:
            return
        self._steps_s.append(round(step_s, 6))
        if len(self._steps_s) == _TIMED_STEPS:
            self.report({"event": "pace", "steps_s": self._steps_s})

    def _micro_batch(
        self, indices: Indices, shifts: Indices | None, batch_size: int
    ) -> tuple[float, int]:
        """Add one micro-batch's share of the batch gradient; return its share of the loss and the right answers."""
        inputs, labels = self._batch(indices, shifts)
        with computing_in(self._dtype, self.settings.device):
            logits = self.model(inputs).float()
        del inputs
        loss = F.cross_entropy(
            logits, labels, reduction="sum", label_smoothing=self.settings.label_smoothing
        )
        loss = loss / batch_size
        value = float(loss.detach())
        if not math.isfinite(value):  # before backward, which may change weights
            raise RevedgeError(
                f"the loss is {value} at step {self.position.step} of {self.total_steps}; use a smaller --lr (now "
                f"{self.settings.learning_rate:g}); the last good checkpoint is of step {max(0, self._saved_step)}"
            )
        loss.backward()
        self.frames.drop_pages()
        return value, int((logits.detach().argmax(1) == labels).sum())

    def _batch(self, indices: Indices, shifts: Indices | None) -> tuple[Tensor, Tensor]:
        frames, labels = self.frames.batch(indices)
        if shifts is not None:
            shift_frames(frames, shifts)
        device = self.settings.device
        inputs = torch.from_numpy(frames).to(device).to(torch.float32)
        return inputs.mul_(self.frames.scale), torch.from_numpy(labels).to(device)

    def _end_epoch(self) -> None:
        position = self.position
        began_s = time.monotonic()
        test_loss, test_accuracy = self.evaluate()
        position.evaluate_next = False
        position.last_epoch = {
            "epoch": position.step // self.steps_per_epoch,
            "step": position.step,
            "train_loss": position.loss_sum / position.seen,
            "train_accuracy": position.correct / position.seen,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }
        self.report(
            {"event": "epoch", **position.last_epoch, "evaluation_s": time.monotonic() - began_s}
        )
        self.save(must=position.step >= self.total_steps)

    @torch.no_grad()
    def _finite(self) -> bool:
        """Return whether no weight is NaN or infinite (their sum is finite then); takes no memory."""
        floats = (t for t in self.model.state_dict().values() if t.is_floating_point())
        return all(math.isfinite(float(t.sum())) for t in floats)

    def _pause(self) -> None:
        """Hold still while asked to; what is kept meanwhile is the network, its optimizer, and a checkpoint."""
        if not self.paused():
            return
        if self._saved_step != self.position.step:
            self.save()
        self.frames.drop_pages()
        allocator.trim()
        self.report({"event": "paused", "step": self.position.step})
        while self.paused() and not self.should_stop():
            self.watch()
            time.sleep(_PAUSE_S)
        self.report({"event": "resumed", "step": self.position.step})

    def _stop(self) -> None:
        self.save(must=True)
        raise Stopped(self.position.step)
