"""Where a training stands, put into checkpoints and taken out of them."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from revedge.devices.checkpoint import CheckpointStore
from revedge.devices.loop_settings import Event, Position
from revedge.devices.optimizer import Optimizer
from revedge.errors import RevedgeError


class Saving:
    """Everything that a training carries from one process to the next.

    Args:
        model: that is trained.
        optimizer: over its parameters.
        store: where checkpoints go and come from.
        report: takes events.
        learning_rate: as it was asked for, for the words of an error.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        store: CheckpointStore,
        report: Callable[[Event], None],
        learning_rate: float,
    ) -> None:
        self._model, self._optimizer, self.store = model, optimizer, store
        self._report, self._learning_rate = report, learning_rate
        self.position = Position()
        self.saved_step = -1
        self._saved_s = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the last attempt to write a checkpoint."""
        return time.monotonic() - self._saved_s

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint holds: live tensors, not copies."""
        model = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        state = self._optimizer.state_tensors()
        return model | {f"optimizer.{name}": tensor for name, tensor in state.items()}

    def restore(self) -> None:
        """Go to the newest good checkpoint, or stay at the start if there is none.

        Raises:
            CheckpointError: there are checkpoints, but none can be used.
        """
        loaded = self.store.load(self.tensors())
        for problem in loaded.problems:
            self._report(
                {"event": "warning", "text": f"{problem}; the checkpoint before it is used"}
            )
        if loaded.state is not None:
            self.position = Position(**loaded.state)
            self.saved_step = self.position.step

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint; when that fails say so and go on with the older one, unless it `must` succeed.

        Raises:
            RevedgeError: weights are not finite; or it must succeed, and the disk does not let it.
        """
        position = self.position
        if not self._finite():
            raise RevedgeError(
                f"weights are not finite after step {position.step}; {self.advice()}"
            )
        try:
            state = {k: v for k, v in vars(position).items() if k != "step"}
            self.store.save(position.step, self.tensors(), state)
        except OSError as error:
            text = f"the checkpoint of step {position.step} could not be written ({error.strerror})"
            if must:
                raise RevedgeError(
                    f"{text}; the last good one (step {self.saved_step}) is kept: free some space, then "
                    "continue with --resume"
                ) from None
            self._report(
                {
                    "event": "warning",
                    "text": f"{text}; the last good one is kept and training goes on",
                }
            )
        else:
            self.saved_step = position.step
            self._report({"event": "checkpoint", "step": position.step})
        self._saved_s = time.monotonic()

    def advice(self) -> str:
        """Return what to do where numbers are not finite."""
        return (
            f"use a smaller --lr (now {self._learning_rate:g}); the last good checkpoint is of step "
            f"{max(0, self.saved_step)}"
        )

    @torch.no_grad()
    def _finite(self) -> bool:
        """Return whether no weight is NaN or infinite (their sum is finite then); takes no memory."""
        floats = (t for t in self._model.state_dict().values() if t.is_floating_point())
        return all(math.isfinite(float(t.sum())) for t in floats)
