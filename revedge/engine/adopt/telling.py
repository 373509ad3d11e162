"""The report of what `apply` did, read off its programs."""

from typing import Any

from torch import nn

from revedge.engine.adopt.forward import Forward
from revedge.engine.adopt.piece import Piece
from revedge.engine.adopt.program import Program
from revedge.engine.adopt.report import Report, RunLine
from revedge.engine.coupling import Coupling
from revedge.engine.feed import Feed
from revedge.engine.in_vain import why_not_in_spans
from revedge.engine.residual import Residual
from revedge.engine.run import Run
from revedge.engine.unit import GRID_BITS, Branch, Unit
from revedge.neurons import BaseNode, ReversibleNode
from revedge.units import format_bytes

_LIBRARIES = (
    "spikingjelly.activation_based.neuron",
    "snntorch._neurons",
    "norse.torch",
    "sinabs.layers",
)


def is_neuron(module: nn.Module) -> bool:
    """Whether ``module`` is a spiking neuron of ours or of a library that we have heard of."""
    if isinstance(module, BaseNode | ReversibleNode):
        return True
    return any(kind.__module__.startswith(_LIBRARIES) for kind in type(module).__mro__)


def report_of(model: nn.Module, forwards: list[Forward]) -> Report:
    """Return the report for the programs that are current."""
    names = {module: name for name, module in model.named_modules()}
    lines: list[RunLine] = []
    notes: list[str] = []
    why: dict[str, str] = {}
    held: set[nn.Module] = set()
    failed: dict[nn.Module, str] = {}
    waiting = 0
    for forward in forwards:
        prefix = f"{names[forward.root]}." if names.get(forward.root) else ""
        failed.update(forward.failures)
        why.update({prefix + name: reason for name, reason in forward.why.items()})
        program = forward.current
        if program is None:
            continue
        lines += [line for piece in program.pieces for line in _lines(piece, prefix)]
        held |= {
            part
            for piece in program.pieces
            for neuron in piece.neurons
            for part in neuron.modules()
        }
        notes += _notes(program, prefix)
        waiting += program.waiting
    left = [(name, _reason(module, name, why, failed, forwards, names)) for module, name in names.items()
            if is_neuron(module) and module not in held]  # fmt: skip
    opaque = [
        (names[module] or type(module).__name__, reason)
        for module, reason in failed.items()
        if module in names
    ]
    if waiting:
        notes.append(
            f"{waiting} more blocks could have their input rebuilt instead of kept: grid=True allows it, "
            f"and changes the forward by at most 2**-{GRID_BITS + 1} per addition"
        )
    return Report(type(model).__name__, tuple(lines), (*left, *opaque), tuple(notes))


def _lines(piece: Piece, prefix: str) -> list[RunLine]:
    names = [prefix + name for name in piece.names]
    paths = list(piece.paths)
    lines = []
    for run in piece.runs:
        mine, paths = paths[: _paths(run)], paths[_paths(run) :]
        names = [prefix + name for path in mine for name in path.names]
        lines.append(line_of(run, names or [str(piece.source)]))
    return lines


def _paths(run: Run) -> int:
    """Number of the user's chains that a run was made of."""
    return len(_branches(run))


def _branches(run: Run) -> list[Branch]:
    if isinstance(run, Coupling):
        return run.half_blocks()
    return run.branch_list() if isinstance(run, Feed | Residual) else []


def line_of(run: Run, names: list[str]) -> RunLine:
    """Return the line of one run that holds the modules of ``names``."""
    units = [unit for unit in run.modules() if isinstance(unit, Unit)]
    blocks = len(_branches(run)) // (2 if isinstance(run, Coupling) else 1)
    return RunLine(
        kind=type(run).__name__.lower(),
        first=names[0],
        last=names[-1],
        blocks=1 if isinstance(run, Feed) else max(1, blocks),
        units=len(units),
        neurons=sum(unit.neuron is not None for unit in units),
        strategy=run.strategy,
    )


def notes_of(runs: list[Run], plan: Any) -> list[str]:
    """Return in what sizes ``runs`` compute, and what ``plan``, if there is one, asks for that is not done here."""
    notes = [f"the runs compute in {sizes}"] if runs and (sizes := _sizes(runs[0])) else []
    if runs and runs[0].span_count is not None and (why := why_not_in_spans(runs)) is not None:
        notes.append(f"spans change nothing: {why}")
    if getattr(plan, "update_in_backward", False) and not any(run.update for run in runs):
        notes.append(
            "the plan updates in backward, which is not done yet: "
            "call revedge.engine.update_in_backward(model, update)"
        )
    precision = getattr(plan, "precision", "float32")
    if precision != "float32":
        notes.append(
            f"the plan computes in {precision}, which is not done here: "
            f"call the model under torch.autocast(device, dtype=torch.{precision}, cache_enabled=False)"
        )
    return notes


def _sizes(run: Run) -> str:
    """Slabs, spans and chunks of ``run``, as far as it has them."""
    parts = []
    if run.slab_bytes is not None:
        parts.append(f"slabs of {format_bytes(run.slab_bytes)}")
    if run.span_count is not None:
        few = "" if run.membrane_count is None else f" with {run.membrane_count} membranes"
        parts.append(f"{run.span_count} spans of time{few}")
    if run.chunk_bytes is not None:
        parts.append(f"chunks of {format_bytes(run.chunk_bytes)}")
    return ", ".join(parts)


def _notes(program: Program, prefix: str) -> list[str]:
    held = {name for piece in program.pieces for name in piece.names}
    notes = [
        f"{prefix}{name}: {note}"
        for name, found in program.notes.items()
        if name in held
        for note in found
    ]
    rounded = [
        run
        for piece in program.pieces
        for run in piece.runs
        if isinstance(run, Residual | Coupling)
    ]
    if rounded:
        notes.append(
            f"the streams of {len(rounded)} residual or coupling runs are rounded to multiples of 2**-{GRID_BITS}, "
            f"which changes them by at most 2**-{GRID_BITS + 1} per addition"
        )
    return notes


def _outward(name: str) -> list[str]:
    """``name`` and the names of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _reason(
    module: nn.Module,
    name: str,
    why: dict[str, str],
    failed: dict[nn.Module, str],
    forwards: list[Forward],
    names: dict[nn.Module, str],
) -> str:
    kind = type(module).__name__
    asked: tuple[Any, ...] = forwards[0].settings.leave if forwards else ()
    for outer in asked:
        if module in set(outer.modules()):
            return f"{kind}: left on request ({names[outer]})"
    for outer_name in _outward(name):
        if outer_name in why:
            return f"{kind}: {why[outer_name]}"
    for outer in failed:
        if module in set(outer.modules()):
            return (
                f"{kind}: inside {names.get(outer) or type(outer).__name__}, which cannot be traced"
            )
    return f"{kind}: what it is given is not known to begin with T and B, or it is not called"
