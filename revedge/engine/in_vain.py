"""What may be asked of runs and would change nothing in them: a setting in vain is an error where somebody types it."""

from collections.abc import Iterable

from revedge.engine.coupling import Coupling
from revedge.engine.residual import Residual
from revedge.engine.run import Run
from revedge.engine.span import can_ever_be_cut
from revedge.neurons import ReversibleNode

SPAN_STRATEGIES = ("keep-spikes", "reverse")  # the others keep what spans would make again


def why_nothing_to_cut(runs: Iterable[Run]) -> str | None:
    """Return why no block of ``runs`` can go backward in spans of time under any strategy; None if one can."""
    if any(_has_cuttable_block(run) for run in runs):
        return None
    return (
        "nothing in this net can be cut over time: it has no residual or coupling block of batch norms, "
        "IF or LIF neurons and convolutions alone"
    )


def why_not_in_spans(runs: Iterable[Run]) -> str | None:
    """Return why no block of ``runs`` goes backward in spans of time as they are set; None if one does."""
    runs = list(runs)
    names = {run.strategy: None for run in runs if _has_cuttable_block(run)}
    if not names or not names.keys().isdisjoint(SPAN_STRATEGIES):
        return why_nothing_to_cut(runs)
    return (
        f"{' and '.join(names)} keeps what spans of time would make again; "
        f"they are of {' and '.join(SPAN_STRATEGIES)}"
    )


def why_not_inverted(runs: Iterable[Run]) -> str | None:
    """Return why ``invert`` is no strategy of its own for ``runs``; None if it is."""
    if any(isinstance(module, ReversibleNode) for run in runs for module in run.modules()):
        return None
    return "invert is of reversible neurons, and this net has none; it would be keep-conv"


def _has_cuttable_block(run: Run) -> bool:
    if isinstance(run, Coupling):
        return any(map(can_ever_be_cut, run.half_blocks()))
    return isinstance(run, Residual) and any(map(can_ever_be_cut, run.branch_list()))
