"""`apply`: give the spiking parts of a user's own model memory strategies, and take them back."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from torch import nn

from revedge.engine.adopt import parts, snntorch, spikingjelly
from revedge.engine.adopt.forward import Forward, Settings, runs_of
from revedge.engine.adopt.report import Report
from revedge.engine.adopt.rest import forget
from revedge.engine.adopt.telling import is_neuron, line_of, notes_of, report_of
from revedge.engine.run import Run
from revedge.engine.settings import SetsRuns, StrategySettings, one_per_run
from revedge.engine.strategy import check_strategy
from revedge.errors import UsageError

parts.RECOGNIZERS[:0] = [spikingjelly.recognize, snntorch.recognize]


@runtime_checkable
class _OfRuns(Protocol):
    """A net of the engine: `revedge.SpikingNet`."""

    def runs(self) -> list[Run]: ...

    def set_strategy(self, strategy: str | Sequence[str], *, check: str | None = None) -> None: ...


class Applied(SetsRuns):
    """A model under `apply`; prints as the report. Its setters reach programs that are traced later, too.

    Attributes:
        model: the user's model, whose forward now goes through runs.
    """

    def __init__(
        self,
        model: nn.Module,
        forwards: list[Forward],
        settings: StrategySettings,
        plan: Any = None,
    ) -> None:
        self.model = model
        self._forwards = forwards
        self._settings, self._plan = settings, plan
        self._undone = False

    @property
    def report(self) -> Report:
        """What is a run now, and what is left; follows the model's mode and later changes of it."""
        found = report_of(self.model, self._forwards)
        return replace(found, notes=(*found.notes, *notes_of(self.runs(), self._plan)))

    def __str__(self) -> str:
        """Return the report as text."""
        return str(self.report)

    def runs(self) -> list[Run]:
        """Return the runs that the model goes through now, in order."""
        programs = [forward.current for forward in self._forwards]
        return [run for program in programs if program for run in runs_of(program)]

    def strategy_settings(self) -> list[StrategySettings]:
        """See `SetsRuns`: what runs to come are told, and all runs made so far."""
        self._refuse_undone()
        programs = [program for forward in self._forwards for program in forward.programs()]
        return [self._settings, *(run for program in programs for run in runs_of(program))]

    def set_strategy(self, strategy: str | Sequence[str], *, check: str | None = None) -> None:
        """Choose what every run (one name) or each run in order (a list) keeps for the backward pass.

        Raises:
            UsageError: an unknown name, or a list of another length than there are runs; `undo` was called.
        """
        self._refuse_undone()
        names = one_per_run(strategy, len(self.runs()))
        if check is not None:
            self.set_check(check)
        _spread(self._forwards, [strategy] if isinstance(strategy, str) else names)

    def undo(self) -> None:
        """Let the model run as it was written."""
        for forward in self._forwards:
            forget(forward.neurons())
            forward.root.__dict__.pop("forward", None)
        self._forwards, self._undone = [], True

    def _refuse_undone(self) -> None:
        if self._undone:
            raise UsageError(
                f"undo was called: this {type(self.model).__name__} has no runs to be set; call apply again"
            )


class AppliedNet(Applied):
    """A net of the engine under `apply`: its runs got other settings, and nothing else."""

    def __init__(self, model: nn.Module, before: list[StrategySettings], plan: Any) -> None:
        super().__init__(model, [], StrategySettings(), plan)
        self._before = before

    @property
    def report(self) -> Report:
        """The runs of the net."""
        names = {module: name for name, module in self.model.named_modules()}
        runs = self.runs()
        lines = tuple(line_of(run, [names[run]]) for run in runs)
        return Report(type(self.model).__name__, lines, notes=tuple(notes_of(runs, self._plan)))

    def runs(self) -> list[Run]:
        """Return the net's runs."""
        assert isinstance(self.model, _OfRuns)
        return self.model.runs()

    def strategy_settings(self) -> list[StrategySettings]:
        """See `SetsRuns`."""
        self._refuse_undone()
        return [*self.runs()]

    def set_strategy(self, strategy: str | Sequence[str], *, check: str | None = None) -> None:
        """See `Applied`."""
        self._refuse_undone()
        assert isinstance(self.model, _OfRuns)
        self.model.set_strategy(strategy, check=check)

    def undo(self) -> None:
        """Give the runs the strategies and sizes that they had."""
        if not self._undone:
            for run, before in zip(self.runs(), self._before, strict=True):
                run.set_strategy(before.strategy, check=before.check)
                run.take_sizes(before)
        self._undone = True


def apply(
    model: nn.Module,
    strategy: Any = "reverse",
    *,
    grid: bool = False,
    check: str = "none",
    leave: Iterable[str] = (),
    example: Any = None,
) -> Applied:
    """Give the spiking parts of ``model`` memory strategies; what does not fit stays on ordinary autograd.

    The model keeps its structure, its parameters and its state_dict; only how its forward runs changes, until `undo`.
    Understood are neurons of `revedge.neurons` and of SpikingJelly in multi-step mode, batch norms, convolutions,
    pools, linear layers and their neighbors of torch.nn, on ``[T, B, ...]`` or on ``[T*B, ...]``, where T and B are
    folded and parted by flatten, unflatten, reshape or view. The gradient is the same to the last bit under every
    strategy, and that of ordinary autograd up to rounding: the engine takes batch statistics and charges membranes in
    another order of float32 operations (README.md).

    Every forward starts from rest, and leaves no membrane: call ``reset_net`` between two of them, as ever.
    What the forward reads besides tensors, plain attributes of modules, and lists and tuples of such (globals, say)
    stays as it was when traced.

    Args:
        model: a module; or a `revedge.SpikingNet`, whose runs then get the strategies.
        strategy: one name of `revedge.engine.STRATEGIES`, a list with one name per run, or a plan, whose sizes of
            slabs, spans, membranes and chunks are set, too. Its precision and its update in backward are those of the
            training loop: the report says what to call for them. The rest of a plan is of its network and data.
        grid: let residual and coupling blocks that end in a batch norm round their stream to multiples of 2**-14. Only
            then can ``reverse`` rebuild it. It changes the forward, by at most 2**-15 per addition.
        check: "checksum" compares rebuilt block inputs with those of the forward.
        leave: names of submodules to call as they are.
        example: an input, or a tuple of inputs, that is looked at for its number of axes; some forwards need it.

    Returns:
        What was done: print it; ``set_strategy``, ``set_slab_bytes``, ``set_span_count``, ``set_chunk_bytes`` and
        ``set_check`` change it; ``undo()`` takes it back.

    Raises:
        UsageError: an unknown strategy or name; a size that is none; a list of another length than there are runs; a
            forward that somebody else has replaced already.

    Memory: see the table of strategies in README.md. Time: some milliseconds of tracing now, and again whenever mode,
    hooks, modules or plain attributes have changed; looking for such changes takes microseconds per module and call.

    Example:
        >>> from revedge.engine import apply
        >>> from revedge.neurons import LIFNode
        >>> net = nn.Sequential(nn.Linear(4, 8), LIFNode(), nn.Linear(8, 2))  # [T, B, 4] -> [T, B, 2]
        >>> print(apply(net, "keep-spikes"))
        Sequential: 1 runs hold 1 neurons; 0 left on ordinary autograd
          run  modules  what             strategy
          1    0 to 2   feed of 2 units  keep-spikes
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"a {type(model).__name__} is no module that strategies could be given to")
    plan = strategy if hasattr(strategy, "strategy") else None
    names = _names(strategy)
    settings = StrategySettings(check=check)
    settings.take_sizes(plan)
    if isinstance(model, _OfRuns):
        return _set_net(model, names, settings, plan)
    _clear(model)
    wanted = Settings(settings, grid, tuple(_submodule(model, name) for name in leave))
    inputs = example if isinstance(example, tuple) else () if example is None else (example,)
    forwards: list[Forward] = []
    _adopt(model, wanted, names, inputs, forwards)
    applied = Applied(model, forwards, settings, plan)
    try:
        applied.set_strategy(names[0] if len(names) == 1 else names)
    except UsageError:
        applied.undo()
        raise
    return applied


def _set_net(
    model: nn.Module, names: list[str], settings: StrategySettings, plan: Any
) -> AppliedNet:
    """Set the runs of a net of the engine."""
    assert isinstance(model, _OfRuns)
    before = []
    for run in model.runs():
        before.append(StrategySettings(run.strategy, run.check))
        before[-1].take_sizes(run)
    model.set_strategy(names[0] if len(names) == 1 else names, check=settings.check)
    if plan is not None:
        for run in model.runs():
            run.take_sizes(settings)
    return AppliedNet(model, before, plan)


def _names(strategy: Any) -> list[str]:
    """Strategy names of what `apply` was given."""
    strategy = getattr(strategy, "strategy", strategy)  # a plan
    if not isinstance(strategy, str | Sequence):
        raise UsageError(
            f"{strategy!r} is no strategy; give the name of one, a list with one name per run, or a plan"
        )
    names = [strategy] if isinstance(strategy, str) else list(strategy)
    if not names:
        raise UsageError("an empty list of strategies was given; give one name, or one per run")
    return [check_strategy(name) for name in names]


def _spread(forwards: list[Forward], names: list[str]) -> None:
    """Give each forward its part of the names: one for all, or one for each of its runs."""
    rest = list(names)
    for forward in forwards:
        count = 0 if forward.current is None else len(runs_of(forward.current))
        mine, rest = (names, rest) if len(names) == 1 else (rest[:count], rest[count:])
        forward.strategies = mine or names[-1:]
        for program in forward.programs():
            forward.dress(program)


def _clear(model: nn.Module) -> None:
    """Take back what an earlier `apply` did."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), Forward):
            del module.__dict__["forward"]
    if "forward" in model.__dict__:
        raise UsageError(
            f"the forward of this {type(model).__name__} was replaced already; give apply the plain model"
        )


def _submodule(model: nn.Module, name: str) -> nn.Module:
    found: nn.Module | None = dict(model.named_modules()).get(name)
    if found is None or not name:
        raise UsageError(
            f"leave names {name!r}, which is no submodule of this {type(model).__name__}"
        )
    return found


def _adopt(
    module: nn.Module,
    settings: Settings,
    names: list[str],
    inputs: tuple[Any, ...],
    tried: list[Forward],
) -> None:
    """Replace the forward of ``module`` if runs fit in it, and go into what cannot be traced."""
    forward = Forward(module, settings, names)
    tried.append(forward)
    program = forward.prepare(inputs)
    for opaque in [module] if program is None else list(forward.failures):
        for child in opaque.children() if opaque in forward.failures else ():
            spiking = any(is_neuron(part) for part in child.modules())
            if spiking and not is_neuron(child) and child not in settings.leave:
                _adopt(child, settings, names, (), tried)
    if program is not None:
        module.__dict__["forward"] = forward
