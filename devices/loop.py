"""The training loop: micro-batches, one optimizer step, evaluation, checkpoints. Knows nothing of processes.

Everything it draws comes from (seed, epoch, step) (batches.py) and everything it carries is in its checkpoint
(saving.py), so a training that is cut anywhere and resumed ends with the same bits.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from revedge import allocator
from revedge.devices.augment import seed_step
from revedge.devices.batches import Batches, Shifts
from revedge.devices.checkpoint import CheckpointStore
from revedge.devices.loop_settings import (
    Event,
    Frames,
    Indices,
    LoopSettings,
    Position,
    Stopped,
    learning_rate_at,
)
from revedge.devices.optimizer import Optimizer
from revedge.devices.saving import Saving
from revedge.engine import update_in_backward
from revedge.engine.autocast import computing_in
from revedge.errors import RevedgeError

_PAUSE_S = 0.05  # between two looks whether a pause is over
_TIMED_STEPS = 12  # the first of a process, whose times are reported
_REPORT_S = 0.2  # between two events of steps


class TrainingLoop:
    """Trains `model` on `frames`.

    Args:
        model: [T, B, C, H, W] or [B, C, H, W] float -> logits [B, K].
        optimizer: over the model's parameters.
        frames: both splits.
        settings: what to do.
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
        self.model, self.optimizer, self.frames, self.settings = model, optimizer, frames, settings
        self.report, self.should_stop, self.watch = report, should_stop, watch
        self.before_step, self.paused = before_step, paused
        self.batches = Batches(frames, settings)
        self.saving = Saving(model, optimizer, store, report, settings.learning_rate)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = self.steps_per_epoch * settings.epochs
        self._dtype: torch.dtype = getattr(torch, settings.precision)
        self._reported_s = 0.0
        self._steps_s: list[float] = []

    @property
    def position(self) -> Position:
        """Where the training stands."""
        return self.saving.position

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
        few = self.frames.train_indices[:count]
        self._micro_batch(few, None, count)
        self.optimizer.zero_grad()
        with torch.no_grad():
            if self._dtype != torch.float32:  # evaluation needs other code than training
                self.model.eval()
                self.model(self.batches.tensors(few)[0])
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
            if position.evaluate_next or self.saving.age_s >= self.settings.checkpoint_every_s:
                self.saving.save()
        assert position.last_epoch is not None
        return position.last_epoch

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Return (mean cross entropy, accuracy) over the test split, in batches of the micro-batch size."""
        self.model.eval()
        indices = self.frames.test_indices
        loss, correct = 0.0, 0
        for part, seen in self.batches.evaluation():
            inputs, labels = self.batches.tensors(part)
            logits, labels = self.model(inputs)[seen:], labels[seen:]
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
        chosen, shifts = self.batches.of_step(position.step)
        seed_step(settings.seed, epoch, position.step)
        self.before_step(position.step)
        self.model.train()
        rate = learning_rate_at(
            position.step, self.total_steps, settings.learning_rate, settings.warmup_steps
        )
        if settings.update_in_backward:
            update_in_backward(self.model, lambda p, g: self.optimizer.update_now(p, g, rate))
        batch_loss, correct = 0.0, 0
        for part, moved in self.batches.micro(chosen, shifts):
            loss, right = self._micro_batch(part, moved, len(chosen))
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
        if now - self._reported_s >= _REPORT_S:
            self._reported_s = now
            self.report({"event": "step", "step": position.step, "loss": batch_loss, "lr": rate})

    def _time_step(self, step_s: float) -> None:
        if len(self._steps_s) == _TIMED_STEPS:
            return
        self._steps_s.append(round(step_s, 6))
        if len(self._steps_s) == _TIMED_STEPS or self.position.step == self.total_steps:
            self.report({"event": "pace", "steps_s": self._steps_s})

    def _micro_batch(self, indices: Indices, shifts: Shifts, batch_size: int) -> tuple[float, int]:
        """Add one micro-batch's share of the batch gradient; return its share of the loss and the right answers."""
        inputs, labels = self.batches.tensors(indices, shifts)
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
                f"the loss is {value} at step {self.position.step} of {self.total_steps}; {self.saving.advice()}"
            )
        loss.backward()
        self.frames.drop_pages()
        return value, int((logits.detach().argmax(1) == labels).sum())

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
        self.saving.save(must=position.step >= self.total_steps)

    def _pause(self) -> None:
        """Hold still while asked to; what is kept meanwhile is the network, its optimizer, and a checkpoint."""
        if not self.paused():
            return
        if self.saving.saved_step != self.position.step:
            self.saving.save()
        self.frames.drop_pages()
        allocator.trim()
        self.report({"event": "paused", "step": self.position.step})
        while self.paused() and not self.should_stop():
            self.watch()
            time.sleep(_PAUSE_S)
        self.report({"event": "resumed", "step": self.position.step})

    def _stop(self) -> None:
        self.saving.save(must=True)
        raise Stopped(self.position.step)
