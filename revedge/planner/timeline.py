"""Live bytes over the operators of one training step, by kind, from the lives of its storages."""

from collections.abc import Sequence
from typing import Any

from revedge.planner.tracer import Storage

MOST_POINTS = 300


def timeline(storages: Sequence[Storage], operations: int) -> dict[str, Any]:
    """Return ``{"operations": [...], "bytes": {kind: [...]}}`` of equal lengths, at most `MOST_POINTS` each.

    Of each stretch of operators the moment with the most live bytes is taken, so that no peak is lost. Cost: the
    number of storages times its logarithm.
    """
    changes = [(each.born, each.size_bytes, each.kind) for each in storages]
    changes += [
        (each.died, -each.size_bytes, each.kind) for each in storages if each.died is not None
    ]
    # At one moment, what is born comes first: an operator's operands are alive beside its result.
    changes.sort(key=lambda change: (change[0], change[1] < 0))
    kinds = sorted({each.kind for each in storages})
    live, best = dict.fromkeys(kinds, 0), dict[int, tuple[int, int, dict[str, int]]]()
    stretch = max(1, -(-operations // MOST_POINTS))
    for moment, size_bytes, kind in changes:
        live[kind] += size_bytes
        place, total = min(moment, operations - 1) // stretch, sum(live.values())
        if place not in best or total > best[place][0]:
            best[place] = (total, moment, dict(live))
    points = [best[place] for place in sorted(best)]
    return {
        "operations": [moment for _, moment, _ in points],
        "bytes": {kind: [found[kind] for _, _, found in points] for kind in kinds},
    }
