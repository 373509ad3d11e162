"""A strategy for each run of the network: the fastest choice that fits. Free of torch."""

from collections.abc import Sequence
from dataclasses import replace

from revedge.planner.cost import SLACK_SHARE
from revedge.planner.ladder import Rung
from revedge.planner.mixture import Part, climbed, fastest_first
from revedge.planner.tried import Tried
from revedge.planner.way import TIME_FACTORS, Way

_MOST_MIXTURES = (
    8  # that are predicted; the first fits, but where slabs let one run compute what another keeps
)


def mixed(tried: Tried, rung: Rung, way: Way, micro: int, optimizer: str) -> Way:
    """Return ``way`` with faster strategies for single runs of the network, as far as that fits."""
    strategy = way.strategy
    if tried.request.strategy is not None or not isinstance(strategy, str):
        return way

    def with_names(names: Sequence[str]) -> Way:
        return replace(way, strategy=names[0] if len(set(names)) == 1 else tuple(names))

    def fits(names: Sequence[str]) -> bool:
        return tried.fits(rung, micro, optimizer, with_names(names))

    for names in _mixtures(tried, rung, way, micro, optimizer):
        if fits(names):
            return with_names(names)
    runs = tried.prediction(tried.setting(rung, micro, optimizer, way)).runs
    faster = [s for s in tried.request.strategies() if TIME_FACTORS[s] < TIME_FACTORS[strategy]]
    return with_names(climbed([strategy] * runs, faster, fits))


def _mixtures(
    tried: Tried, rung: Rung, way: Way, micro: int, optimizer: str
) -> list[tuple[str, ...]]:
    """Choices of a strategy for each run, the fastest first; none where bytes are not known run by run."""
    parts: dict[str, list[Part]] = {}
    limit, start = 0, 0
    for name in tried.request.strategies():
        told = tried.prediction(tried.setting(rung, micro, optimizer, replace(way, strategy=name)))
        if told.by_run is None:
            return []
        beside = told.predicted_peak_bytes - told.live_bytes * (1 + SLACK_SHARE)
        limit = max(limit, int((tried.request.budget_bytes - beside) / (1 + SLACK_SHARE)) + 1)
        start = told.by_run.start_bytes
        work = zip(told.by_run.runs, told.by_run.multiplications, strict=True)
        parts[name] = [Part(*run, n * TIME_FACTORS[name]) for run, n in work]
    return fastest_first(parts, start, limit)[:_MOST_MIXTURES]
