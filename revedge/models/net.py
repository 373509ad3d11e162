"""A spiking network: stem, runs, head. Every model of the registry is one of these."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from revedge.engine import (
    Branch,
    Chain,
    Coupling,
    Feed,
    Forks,
    Repeat,
    Residual,
    Run,
    SetsRuns,
    StrategySettings,
    Unit,
    carry,
)
from revedge.engine.settings import one_per_run
from revedge.errors import UsageError
from revedge.neurons import StateSpec


class SpikingNet(nn.Module, SetsRuns):
    """Stem -> body -> head over ``T`` time steps.

    Attributes:
        config: JSON-able arguments; ``revedge.models.create(**config)`` builds the same net.
        in_shape: (C, H, W) of one frame or image.
        num_classes: length of the logits.
        timesteps: T for static images, and the T that event data are cut into.
        static: the input is one image per sample; the stem runs once and its output is repeated T times.
        stem, body, head: runs of `revedge.engine`. The head gives out ``num_classes`` values per step.
    """

    def __init__(
        self,
        *,
        stem: Feed,
        body: Sequence[Run],
        head: Feed,
        in_shape: tuple[int, int, int],
        num_classes: int,
        timesteps: int,
        static: bool,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.stem = stem
        self.body = nn.ModuleList(body)
        self.head = head
        self.in_shape = in_shape
        self.num_classes = num_classes
        self.timesteps = timesteps
        self.static = static
        self.config = config

    def runs(self) -> list[Run]:
        """Stem, body and head in order."""
        return [self.stem, *(run for run in self.body if isinstance(run, Run)), self.head]

    def strategy_settings(self) -> Sequence[StrategySettings]:
        """See `revedge.engine.SetsRuns`."""
        return self.runs()

    def set_strategy(self, strategy: str | Sequence[str], *, check: str | None = None) -> None:
        """Choose what every run (one name) or each run in order (a list) keeps for the backward pass.

        Raises:
            UsageError: an unknown name, or a list of another length than there are runs.
        """
        runs = self.runs()
        for run, name in zip(runs, one_per_run(strategy, len(runs)), strict=True):
            run.set_strategy(name, check=check)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]``, the mean over time.

        Args:
            x: events ``[T, B, C, H, W]``, or images ``[B, C, H, W]`` if the net is static. float32.
        """
        self._check_input(x, dims=4 if self.static else 5)
        x = x[None] if self.static else x
        repeat = [Repeat(self.timesteps)] if self.static else []
        runs = [self.stem, *repeat, *self.runs()[1:]]
        if any(run._forward_hooks or run._forward_pre_hooks for run in runs):
            for (
                run
            ) in runs:  # one by one, so that the hooks are called; the same bits, some more memory
                x = run(x)
            return x.mean(0)
        chain = Chain(runs)
        return carry(chain, x, chain.parameters()).mean(0)

    def step(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One time step in plain PyTorch: logits of this step ``[B, num_classes]`` and the new states.

        Batch normalization uses its running statistics. The mean of the logits over the steps is what `forward` gives.

        Args:
            x: one frame ``[B, C, H, W]`` (for a static net the image, at every step).
            states: one tensor per entry of `state_spec`, ``[B, *shape]``.
        """
        self._check_input(x, dims=4)
        new: list[Tensor] = []
        stream = x
        for run in self.runs():
            stream, states_of_run = run.step(stream, states[len(new) :])
            new += states_of_run
        return stream, new

    def state_spec(self) -> list[StateSpec]:
        """Names, shapes and rest values of the neurons' states, in the order of `step`."""
        specs: list[StateSpec] = []
        shapes = state_shapes(self)
        for (name, unit), shape in zip(spiking_units(self), shapes, strict=True):
            assert unit.neuron is not None
            v_reset = unit.neuron.v_reset
            specs.append(
                StateSpec(f"{name}.neuron", shape, 0.0 if v_reset is None else float(v_reset))
            )
        return specs

    def initial_states(self, batch: int, *, device: torch.device | str = "cpu") -> list[Tensor]:
        """Return the states at rest, one ``[batch, *shape]`` tensor per entry of `state_spec`."""
        return [
            torch.full((batch, *spec.shape), spec.init, device=device) for spec in self.state_spec()
        ]

    def _check_input(self, x: Tensor, *, dims: int) -> None:
        if x.dim() != dims or tuple(x.shape[-3:]) != self.in_shape:
            layout = {4: "[B, C, H, W]", 5: "[T, B, C, H, W]"}[dims]
            raise UsageError(
                f"input of shape {tuple(x.shape)} does not fit; this {'static ' if self.static else ''}net takes "
                f"{layout} with (C, H, W) = {self.in_shape}"
            )


def spiking_units(net: SpikingNet) -> Iterator[tuple[str, Unit]]:
    """Units with a neuron and their names, in the order in which `SpikingNet.step` uses their states."""
    names = {module: name for name, module in net.named_modules()}
    for run in net.runs():
        for unit in units_of(run):
            if unit.neuron is not None:
                yield names[unit], unit


def units_of(run: Run) -> list[Unit]:
    """The units of a run in the order of their states."""
    if isinstance(run, Forks):
        return [unit for fork in run.fork_list() for unit in fork.unit_list()]
    assert isinstance(run, Coupling | Feed | Residual)
    branches = run.half_blocks() if isinstance(run, Coupling) else run.branch_list()
    return [unit for branch in branches for unit in branch.unit_list()]


def state_shapes(net: SpikingNet) -> list[tuple[int, ...]]:
    """Shapes of the neurons without the batch, found by sending an empty batch through; no memory and no arithmetic."""
    shapes: list[tuple[int, ...]] = []
    parameter = next(net.parameters())
    x = torch.empty((0, *net.in_shape), device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        for run in net.runs():
            x = _run_shapes(run, x, shapes)
    return shapes


def _run_shapes(run: Run, x: Tensor, shapes: list[tuple[int, ...]]) -> Tensor:
    if isinstance(run, Coupling):
        for branch in run.half_blocks():
            _branch_shapes(branch, x[:, : x.shape[1] // 2], shapes)
        return x
    if isinstance(run, Forks):
        for fork in run.fork_list():
            if fork.head is not None:
                shapes.append(tuple(x.shape[1:]))
            outs = [_branch_shapes(arm, x, shapes) for arm in fork.arm_list()]
            x = outs[0]
        return x
    assert isinstance(run, Feed | Residual)
    outs = [_branch_shapes(branch, x, shapes) for branch in run.branch_list()]
    return x if isinstance(run, Residual) else outs[0]


def _branch_shapes(branch: Branch, x: Tensor, shapes: list[tuple[int, ...]]) -> Tensor:
    for unit in branch.unit_list():
        if unit.neuron is not None:
            shapes.append(tuple(x.shape[1:]))
        for module in (unit.pool, unit.op):
            x = x if module is None else module(x)
    return x if branch.pool is None else branch.pool(x)
