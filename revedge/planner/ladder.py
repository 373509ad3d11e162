"""The order in which a search climbs: each rung is a model, its depth and T, better and larger than the one before."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from revedge.errors import UsageError
from revedge.planner.request import Request

MOST_TIMESTEPS = 256
MOST_BLOCKS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One choice of what the user made free."""

    model: str
    timesteps: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return it as people read it."""
        depth = f" depth {self.options['depth']}" if "depth" in self.options else ""
        return f"{self.model}{depth} T={self.timesteps}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder:
    """Rungs, the best last.

    ``rising`` says that memory grows along it, so that the best rung that fits is found by
    bisection; else every rung is tried, from the best down.
    """

    rungs: tuple[Rung, ...]
    rising: bool
    goal: str  # what grows along it


def build(request: Request, families: Mapping[str, list[str]]) -> Ladder:
    """Return the ladder of ``request``: what ``--prefer`` names is free unless its value was given.

    Raises:
        UsageError: there is no such model or family.
    """
    wanted = request.model or request.defaults.model
    known = {name for members in families.values() for name in members}
    if wanted not in families and wanted not in known:
        raise UsageError(
            f"model {wanted!r} is not known; {_hint(wanted, [*families, *sorted(known)])}"
        )
    members = sorted(families.get(wanted, [wanted]), key=_depth_in_name)
    timesteps = request.timesteps or request.defaults.timesteps
    if request.prefer == "timesteps" and request.timesteps is None:
        rungs = [Rung(model=members[0], timesteps=t) for t in range(1, MOST_TIMESTEPS + 1)]
        return Ladder(rungs=tuple(rungs), rising=True, goal="timesteps")
    if len(members) > 1:
        rungs = [Rung(model=name, timesteps=timesteps) for name in members]
        return Ladder(rungs=tuple(rungs), rising=False, goal="depth")
    if request.prefer == "depth" and "depth" not in request.model_options:
        rungs = [
            Rung(model=members[0], timesteps=timesteps, options={"depth": blocks})
            for blocks in range(1, MOST_BLOCKS + 1)
        ]
        return Ladder(rungs=tuple(rungs), rising=True, goal="depth")
    return Ladder(rungs=(Rung(model=members[0], timesteps=timesteps),), rising=True, goal="speed")


def _depth_in_name(name: str) -> tuple[int, str]:
    """Sort key: the number of layers that a model's name ends in."""
    found = re.search(r"(\d+)$", name)
    return (int(found[1]) if found else 0, name)


def _hint(wanted: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wanted, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
