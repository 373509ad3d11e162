"""A module of the user's own as a `SpikingNet`: its forward stays, and what fits in runs gets strategies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from revedge.engine import Run, StrategySettings
from revedge.engine.adopt.applied import Applied, apply
from revedge.engine.adopt.report import Report
from revedge.errors import UsageError
from revedge.models.net import SpikingNet
from revedge.neurons import StateSpec, reset_net


class UserNet(SpikingNet):
    """``module`` under `revedge.engine.apply`; what that cannot improve stays on ordinary autograd.

    Residual and coupling blocks that end in a batch norm round their stream to the grid (``grid=True`` of `apply`), so
    that all strategies are there, and exported files compute what was trained. Every forward starts from rest.

    Attributes:
        module: the user's; its state_dict is that of this net.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        in_shape: tuple[int, int, int],
        num_classes: int,
        timesteps: int,
        static: bool,
        config: dict[str, Any],
    ) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.in_shape, self.num_classes = in_shape, num_classes
        self.timesteps, self.static, self.config = timesteps, static, config
        example = torch.empty(timesteps, 1, *in_shape, device="meta")
        self._applied: Applied | None = apply(module, "store", grid=True, example=example)
        self._made = self._applied.runs()  # in training mode; other modes have others

    @property
    def report(self) -> Report:
        """Return what `apply` says: what is a run, and what is left."""
        assert self._applied is not None, "apply was taken back"
        return self._applied.report

    def runs(self) -> list[Run]:
        """What `apply` has made, in training mode, and runs of the engine that the module holds itself."""
        return [*self._made, *self._own_runs()]

    def strategy_settings(self) -> Sequence[StrategySettings]:
        """See `revedge.engine.SetsRuns`: those of runs to come, too."""
        made = [] if self._applied is None else self._applied.strategy_settings()
        return [*made, *self._own_runs()]

    def set_strategy(self, strategy: str | Sequence[str], *, check: str | None = None) -> None:
        """As `SpikingNet.set_strategy`; reaches what is made later, for evaluation, too.

        Raises:
            UsageError: an unknown name, or a list of another length than there are runs.
        """
        super().set_strategy(strategy, check=check)
        names = [run.strategy for run in self._made]
        if self._applied is not None and names:
            same = len(set(names)) == 1
            self._applied.set_strategy(names[0] if same else names, check=check)

    def _own_runs(self) -> list[Run]:
        return [each for each in self.module.modules() if isinstance(each, Run)]

    def plain(self) -> nn.Module:
        """Take `apply` back and return the user's module, as it was written."""
        if self._applied is not None:
            self._applied.undo()
        self._applied, self._made = None, []
        return self.module

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]``; of a module that gives them for each step, their mean over time.

        Args:
            x: events ``[T, B, C, H, W]``, or images ``[B, C, H, W]`` if the net is static, which the module is given
                T times (a view). float32.

        Raises:
            UsageError: the input does not fit, or the module gives out something else.
        """
        self._check_input(x, dims=4 if self.static else 5)
        x = x.expand(self.timesteps, *x.shape) if self.static else x
        _rest(self.module)
        try:
            y: Any = self.module(x)
        finally:
            _rest(self.module)
        if isinstance(y, Tensor) and y.dim() == 3 and len(y) == len(x):
            y = y.mean(0)
        wanted = (x.shape[1], self.num_classes)
        if not isinstance(y, Tensor) or tuple(y.shape) != wanted:
            given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise UsageError(
                f"model {self.config['name']!r}: for an input of {tuple(x.shape)} it gives {given}; it has to give "
                f"logits {wanted}, or {(len(x), *wanted)}, of which the mean over time is taken"
            )
        return y

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Not possible: only the user's module knows what it does in one step.

        Raises:
            UsageError: always.
        """
        del x, states
        raise self._no_step()

    def state_spec(self) -> list[StateSpec]:
        """As `step`.

        Raises:
            UsageError: always.
        """
        raise self._no_step()

    def _no_step(self) -> UsageError:
        return UsageError(
            f"model {self.config['name']!r} is a module of its own, which is given whole recordings; for single steps "
            "make it a revedge.SpikingNet with revedge.export.import_module"
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return that of the user's module."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load that of the user's module."""
        return self.module.load_state_dict(state_dict, *args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """Yield those of the user's module."""
        return self.module.named_parameters(*args, **kwargs)


def _rest(module: nn.Module) -> None:
    """Forget all membranes; SpikingJelly's modules have a method for it, and so may others."""
    reset_net(module)
    for each in module.modules():
        reset = getattr(each, "reset", None)
        if callable(reset) and type(each).__module__.startswith("spikingjelly."):
            reset()
