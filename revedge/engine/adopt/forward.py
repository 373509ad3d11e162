"""What stands in for a module's forward after `revedge.engine.apply`: traced programs, one per state of the module."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revedge.engine.adopt.parts import has_hooks
from revedge.engine.adopt.program import Program
from revedge.engine.adopt.rest import forget
from revedge.engine.adopt.trace import UntraceableError, trace
from revedge.engine.adopt.watch import called_as_they_are, unread
from revedge.engine.run import Run
from revedge.engine.settings import StrategySettings
from revedge.engine.vjp import Update
from revedge.errors import UsageError

_SIMPLE = (bool, int, float, str, type(None))
_STATES = ("v", "v_seq", "most_spans")  # of our neurons and runs: they change from call to call
_MOST_PROGRAMS = 8


class Forward:
    """The forward of ``root``, with runs where they fit.

    A program holds for one state of the model: its modules, their modes, hooks and plain attributes. Another state gets
    another program when it is first met; what no program fits runs as the user wrote it.

    Attributes:
        current: the program that ran last, or was made first.
        failures: why a module's forward could not be traced, by module.
        why: why a module is in no run, by name, in the program that was made last.
        update: see `revedge.engine.update_in_backward`; a copy of the model has none.
    """

    def __init__(self, root: nn.Module, settings: "Settings", strategies: list[str]) -> None:
        self.root, self.settings, self.strategies = root, settings, strategies
        self.failures: dict[nn.Module, str] = {}
        self.why: dict[str, str] = {}
        self.current: Program | None = None
        self.update: Update | None = None
        self._programs: dict[_Key, Program | None] = {}
        self._opaque: dict[_Key, set[int]] = {}
        self._signature = inspect.signature(type(root).forward)

    def prepare(self, example: Sequence[Any] = ()) -> Program | None:
        """Trace for the model as it is now; None where nothing fits.

        ``example`` are inputs; without, the options of the forward are taken to be their defaults.
        """
        inputs = {
            name: example[index] if index < len(example) else parameter.default
            for index, (name, parameter) in enumerate(self._parameters())
        }
        self.current = self._program_for(inputs)
        return self.current

    def own(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward that the user wrote."""
        forward: Callable[..., Any] = type(self.root).forward
        return forward(self.root, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        bound = self._signature.bind(self.root, *args, **kwargs)
        bound.apply_defaults()
        inputs = dict(list(bound.arguments.items())[1:])
        program = self._program_for(inputs)
        if program is None:
            forget(self.neurons())
            return self.own(*args, **kwargs)
        self.current = program
        return program(inputs)

    def programs(self) -> list[Program]:
        """Return all programs made so far."""
        return [program for program in self._programs.values() if program is not None]

    def neurons(self) -> list[nn.Module]:
        """Return the user's neurons that runs stand in for."""
        return [
            neuron
            for program in self.programs()
            for piece in program.pieces
            for neuron in piece.neurons
        ]

    def _program_for(self, inputs: dict[str, Any]) -> Program | None:
        if not _single_precision(self.root, inputs):
            self.failures[self.root] = "it computes in another precision than float32"
            return None
        if any(
            p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and inputs[name]
            for name, p in self._parameters()
        ):
            self.failures[self.root] = "it is called with further arguments (*args or **kwargs)"
            return None
        given = {name: value for name, value in inputs.items() if type(value) in _SIMPLE}
        wanted = [name for name in inputs if name not in given]
        program = self._program(wanted, given, {})
        if program is not None or self.root not in self.failures:
            return program
        ranks = {name: value.dim() for name, value in inputs.items() if isinstance(value, Tensor)}
        return self._program(wanted, given, ranks)

    def _parameters(self) -> list[tuple[str, inspect.Parameter]]:
        return list(self._signature.parameters.items())[1:]

    def _program(
        self, wanted: list[str], given: dict[str, Any], ranks: dict[str, int]
    ) -> Program | None:
        asked = (tuple(wanted), tuple(given.items()), tuple(ranks.items()))
        key = (asked, _state_of(self.root))
        if key not in self._programs:
            key = next((made for made in self._programs if self._will_do(made, key)), key)
        if key not in self._programs:
            if len(self._programs) >= _MOST_PROGRAMS:
                oldest = next(iter(self._programs))
                del self._programs[oldest], self._opaque[oldest]
            self._programs[key], self._opaque[key] = self._make(given, ranks)
        return self._programs[key]

    def _will_do(self, made: "_Key", key: "_Key") -> bool:
        """Whether the program for ``made`` is one for ``key``, too: attributes differ that it does not depend on."""
        opaque = self._opaque[made]
        if not opaque or made[0] != key[0] or len(made[1]) != len(key[1]):
            return False
        return all(
            before == now or (before[0] in opaque and before[:-1] == now[:-1])
            for before, now in zip(made[1], key[1], strict=True)
        )

    def _make(
        self, given: dict[str, Any], ranks: dict[str, int]
    ) -> tuple[Program | None, set[int]]:
        """Trace; return the program, and the ids of modules whose plain attributes it does not depend on."""
        leaves = set(self.settings.leave) - {self.root}
        self.failures.clear()
        while True:
            try:
                graph = trace(self.root, leaves, ranks, given)
                opaque = called_as_they_are(self.root, graph)
                if opaque:
                    with unread(opaque):
                        trace(self.root, leaves, ranks, given)
                break
            except UntraceableError as failure:
                self.failures[failure.module] = failure.reason
                if failure.module is self.root or failure.module in leaves:
                    return None, {id(failure.module)}
                leaves.add(failure.module)  # it is called as it is; the rest may still fit
        free = {id(module) for module in opaque}
        program = Program(self.root, graph, grid=self.settings.grid)
        self.why = program.why
        if not program.pieces:
            return None, free
        self.dress(program)
        return program, free

    def dress(self, program: Program) -> None:
        """Give the runs of ``program`` their settings; the last strategy serves those that the list does not reach.

        Raises:
            UsageError: parameters are to be updated in the backward pass, and one of them is used twice.
        """
        shared = program.used_twice() if self.update is not None else None
        if shared is not None:
            raise UsageError(
                f"{shared} is used more than once in the forward of this {type(self.root).__name__}, and its gradient "
                "is complete only after backward; it cannot be updated in the backward pass: use optimizer.step()"
            )
        for index, run in enumerate(runs_of(program)):
            run.update = self.update
            run.take_sizes(self.settings.runs)
            name = self.strategies[min(index, len(self.strategies) - 1)]
            run.set_strategy(name, check=self.settings.runs.check)

    def set_update(self, update: Update | None) -> None:
        """Update parameters in the backward pass of the runs, of those to come too; None ends it.

        Raises:
            UsageError: a parameter is used twice.
        """
        self.update = update
        for program in self.programs():
            self.dress(program)

    def __getstate__(self) -> dict[str, Any]:
        """Programs are made again in a copy, of the copied modules."""
        return {"root": self.root, "settings": self.settings, "strategies": self.strategies}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with no program."""
        self.__init__(state["root"], state["settings"], state["strategies"])  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Settings:
    """What `revedge.engine.apply` was asked for.

    Attributes:
        runs: what runs to come are told, but for their strategies.
        grid: see `revedge.engine.apply`.
        leave: modules to be called as they are.
    """

    runs: StrategySettings
    grid: bool
    leave: tuple[nn.Module, ...]


def runs_of(program: Program) -> list[Run]:
    """Return the runs of a program in order."""
    return [run for piece in program.pieces for run in piece.runs]


_State = tuple[
    int, bool, bool, bool, tuple[Any, ...]
]  # which module, hooks, replaced, training, attributes
_Key = tuple[tuple[Any, ...], tuple[_State, ...]]


def _state_of(root: nn.Module) -> tuple[_State, ...]:
    """What a traced program of ``root`` depends on."""
    return tuple(_state(module, is_root=module is root) for module in root.modules())


def _state(module: nn.Module, *, is_root: bool) -> _State:
    plain = tuple(
        (name, value)
        for name, value in module.__dict__.items()
        if type(value) in _SIMPLE and name not in _STATES
    )
    if not type(module).__module__.startswith("torch."):  # torch's own read theirs as they run
        plain += tuple(
            (name, *value)
            for name, value in module.__dict__.items()
            if type(value) in (tuple, list) and all(type(one) in _SIMPLE for one in value)
        )
    replaced = "forward" in module.__dict__ and not is_root  # the root's, by what asks
    return id(module), has_hooks(module), replaced, module.training, plain


def _single_precision(root: nn.Module, inputs: dict[str, Any]) -> bool:
    if any(p.dtype != torch.float32 for p in root.parameters() if p.is_floating_point()):
        return False
    tensors = [
        value
        for value in inputs.values()
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    return all(tensor.dtype != torch.float64 for tensor in tensors)
