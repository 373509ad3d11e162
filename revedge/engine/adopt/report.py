"""What `revedge.engine.apply` did to a model, as a value that prints."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run.

    Attributes:
        kind: "feed", "residual" or "coupling".
        first, last: names of the modules that it begins and ends with.
        blocks: residual or coupling blocks, 1 for a feed.
        units: spiking units.
        neurons: neurons in it.
        strategy: see `revedge.engine.strategy`.
    """

    kind: str
    first: str
    last: str
    blocks: int
    units: int
    neurons: int
    strategy: str


@dataclass(frozen=True, slots=True)
class Report:
    """What became a run, and what was left on ordinary autograd.

    Attributes:
        model: class of the model.
        runs: in the order of the forward pass.
        left: (name of a neuron or module, why a run does not hold it).
        notes: what the user should know about the numbers.
    """

    model: str
    runs: tuple[RunLine, ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """Return the report as text."""
        inside = sum(run.neurons for run in self.runs)
        lines = [
            f"{self.model}: {len(self.runs)} runs hold {inside} neurons; {len(self.left)} left on ordinary autograd"
        ]
        rows = [
            (str(i), _span(run), _what(run), run.strategy) for i, run in enumerate(self.runs, 1)
        ]
        if rows:
            rows.insert(0, ("run", "modules", "what", "strategy"))
            widths = [max(len(row[column]) for row in rows) for column in range(4)]
            lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [f"  left: {name}: {why}" for name, why in self.left]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _span(run: RunLine) -> str:
    return run.first if run.first == run.last else f"{run.first} to {run.last}"


def _what(run: RunLine) -> str:
    units = f"{run.units} unit{'s' * (run.units > 1)}"
    return (
        f"{run.kind} of {units}"
        if run.kind == "feed"
        else f"{run.kind} of {run.blocks} blocks, {units}"
    )
