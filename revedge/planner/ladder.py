"""The order in which a search climbs: each rung is a model, its depth, width and T, larger than the one before.

What is free are dimensions: the members of a family, depth, time steps, width. The first ladder goes along the one
that the user prefers, with the others at their least; then each of the others is climbed from what was reached.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from revedge.errors import UsageError
from revedge.planner.request import Request
from revedge.user_code import is_user_model

MOST_TIMESTEPS = 256
MOST_BLOCKS = 512
MOST_USER_BLOCKS = 64  # of a model of the user's, which is traced whole at each depth
_WIDTH_STEP = 8
_MOST_WIDTHS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One choice of what the user made free."""

    model: str
    timesteps: int
    options: Mapping[str, Any] = field(default_factory=dict)
    accuracy: float | None = None  # that a finished training of it reached

    def text(self) -> str:
        """Return it as people read it."""
        depth = f" depth {self.options['depth']}" if "depth" in self.options else ""
        return f"{self.model}{depth} T={self.timesteps}"

    def changed(self, name: str, value: Any) -> "Rung":
        """Return this rung with ``model``, ``timesteps`` or an option of another value; a ``run`` is a rung."""
        if name == "run":
            return value  # type: ignore[no-any-return]
        if name in ("model", "timesteps"):
            return dataclasses.replace(self, **{name: value})
        return dataclasses.replace(self, options={**self.options, name: value})

    def value(self, name: str) -> Any:
        """Return ``model``, ``timesteps`` or an option (None if it has none); as a ``run`` all of it."""
        if name == "run":
            return self
        return getattr(self, name) if name in ("model", "timesteps") else self.options.get(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """What is free, and its values, the best last.

    ``rising`` says that memory grows along it, so that the best value that fits is found by bisection; else every
    value is tried, from the best down.
    """

    name: str  # "model", "depth", "timesteps", "width" or "run"
    values: tuple[Any, ...]
    rising: bool

    @property
    def goal(self) -> str:
        """What grows along it."""
        return {"model": "depth", "run": "accuracy per byte"}.get(self.name, self.name)

    def rungs(self, start: Rung) -> list[Rung]:
        """Return ``start`` with each value, from its own on."""
        own = start.value(self.name)
        first = self.values.index(own) if own in self.values else 0
        return [start.changed(self.name, value) for value in self.values[first:]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder:
    """The least of all that was asked for, and the dimensions along which it may grow, the preferred one first."""

    least: Rung
    dimensions: tuple[Dimension, ...]

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Rungs of the first dimension; the least alone where nothing is free."""
        return tuple(self.dimensions[0].rungs(self.least)) if self.dimensions else (self.least,)

    @property
    def rising(self) -> bool:
        """Whether memory grows along these rungs."""
        return not self.dimensions or self.dimensions[0].rising


def build(request: Request, families: Mapping[str, list[str]]) -> Ladder:
    """Return the ladder of ``request``: ranges, and what ``--prefer`` names unless its value was given.

    Raises:
        UsageError: there is no such model or family, or a range that needs one model was given with a family.
    """
    if request.prefer == "accuracy-per-byte":
        runs = tuple(
            Rung(
                model=each.model,
                timesteps=each.timesteps,
                options=each.model_options,
                accuracy=each.accuracy,
            )
            for each in request.runs
        )
        return Ladder(least=runs[0], dimensions=(Dimension(name="run", values=runs, rising=False),))
    wanted = request.model or request.defaults.model
    known = {name for members in families.values() for name in members}
    if wanted not in families and wanted not in known and not is_user_model(wanted):
        raise UsageError(
            f"model {wanted!r} is not known; {_hint(wanted, [*families, *sorted(known)])}"
        )
    members = sorted(families.get(wanted, [wanted]), key=_depth_in_name)
    ranges = dict(request.ranges)
    if "depth" in ranges and len(members) > 1:
        low, high = ranges["depth"]
        raise UsageError(
            f"--depth {low}..{high} needs a model, {wanted!r} is a family; name one of {', '.join(members)}"
        )
    if request.prefer == "timesteps" and request.timesteps is None:
        ranges.setdefault("timesteps", (1, MOST_TIMESTEPS))
        members = members[:1]
    if request.prefer == "depth" and len(members) == 1 and "depth" not in request.model_options:
        most = MOST_USER_BLOCKS if is_user_model(wanted) else MOST_BLOCKS
        ranges.setdefault("depth", (1, most))
    free = [
        Dimension(name=name, values=_values(name, *ranges[name]), rising=name != "width")
        for name in ("depth", "timesteps", "width")
        if name in ranges
    ]
    free.sort(key=lambda each: each.name != request.prefer)
    if len(members) > 1:
        free.insert(0, Dimension(name="model", values=tuple(members), rising=False))
    least = Rung(model=members[0], timesteps=request.timesteps or request.defaults.timesteps)
    for dimension in free:
        least = least.changed(dimension.name, dimension.values[0])
    return Ladder(least=least, dimensions=tuple(free))


def _values(name: str, low: int, high: int) -> tuple[int, ...]:
    """Every number; of widths both ends and multiples of eight between, sixteen at most."""
    if name != "width":
        return tuple(range(low, high + 1))
    step = _WIDTH_STEP * max(1, -(-(high - low) // (_WIDTH_STEP * _MOST_WIDTHS)))
    return tuple(sorted({low, high, *range(-(-low // step) * step, high, step)}))


def _depth_in_name(name: str) -> tuple[int, str]:
    """Sort key: the number of layers that a model's name ends in."""
    found = re.search(r"(\d+)$", name)
    return (int(found[1]) if found else 0, name)


def _hint(wanted: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wanted, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
