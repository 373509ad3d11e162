"""Units and branches of the engine, made of parts in turn."""

from typing import Any

from torch import nn

from revedge.engine.adopt.parts import Part
from revedge.engine.unit import Branch, Unit
from revedge.engine.vjp import is_known


def units_of(parts: list[Part]) -> list[Unit]:
    """Make units of parts in turn."""
    drafts: list[dict[str, Any]] = []

    def fresh() -> dict[str, Any]:
        drafts.append({"norm": None, "neuron": None, "dropout": None, "before": [], "after": []})
        return drafts[-1]

    now = fresh()
    for part in parts:
        filled = now["neuron"] is not None or now["dropout"] is not None or now["before"]
        if part.kind == "norm":
            now = fresh() if filled or now["norm"] is not None else now
            now["norm"] = part.module
        elif part.kind == "neuron":
            now = fresh() if filled else now
            now["neuron"] = part.module
        elif part.kind == "dropout":
            now = fresh() if now["dropout"] is not None else now
            now["dropout"] = part
        elif part.kind == "tail":
            now["before" if now["dropout"] is None else "after"].append(part.module)
    return [_unit(draft) for draft in drafts if any(value for value in draft.values())]


def _unit(draft: dict[str, Any]) -> Unit:
    before, after, dropout = draft["before"], draft["after"], draft["dropout"]
    if (
        dropout is None
        and before
        and isinstance(before[-1], nn.Conv2d | nn.Linear)
        and all(map(is_known, before))
    ):
        # The engine knows best what ends a tail with its operator.
        before, after = before[:-1], before[-1:]
    unit = Unit(
        norm=draft["norm"],
        neuron=draft["neuron"],
        pool=_in_turn(before),
        dropout=0.0 if dropout is None else dropout.probability,
        op=_in_turn(after),
    )
    unit.training = dropout is not None and dropout.probability > 0.0
    return unit


def _in_turn(modules: list[nn.Module]) -> nn.Module | None:
    if not modules:
        return None
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def branch_of(parts: list[Part], *, ends_on_grid: bool) -> Branch:
    """Make a branch of parts; ``ends_on_grid`` takes the last normalization, and what follows, as the branch's own."""
    if not ends_on_grid:
        return Branch(units_of(parts))
    at = max(index for index, part in enumerate(parts) if part.kind == "norm")
    return Branch(
        units_of(parts[:at]),
        norm=parts[at].module,  # type: ignore[arg-type]
        pool=_in_turn([part.module for part in parts[at + 1 :] if part.module is not None]),
    )
