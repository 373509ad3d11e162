"""A strategy for each run of the network: the fastest choice that fits, and the least. Free of torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from revedge.planner.cost import SLACK_SHARE
from revedge.planner.ladder import Rung
from revedge.planner.mixture import Part, climbed, fastest_first, least_first
from revedge.planner.tried import Tried
from revedge.planner.way import TIME_FACTORS, Way

# Mixtures that are predicted: the first fits, but where slabs let one run compute what another keeps.
_MOST_MIXTURES = 8


def mixed(tried: Tried, rung: Rung, way: Way, micro: int, optimizer: str) -> Way:
    """Return ``way`` with faster strategies for single runs of the network, as far as that fits."""
    if tried.request.strategy is not None:
        return way

    def fits(names: Sequence[str]) -> bool:
        return tried.fits(rung, micro, optimizer, _with_names(way, names))

    for names in _fastest(tried, rung, way, micro, optimizer):
        if fits(names):
            return _with_names(way, names)
    strategy = way.strategy
    if not isinstance(strategy, str):
        return way
    runs = tried.prediction(tried.setting(rung, micro, optimizer, way)).runs
    faster = [s for s in tried.request.strategies() if TIME_FACTORS[s] < TIME_FACTORS[strategy]]
    return _with_names(way, climbed([strategy] * runs, faster, fits))


def least(tried: Tried, rung: Rung, micro: int, optimizer: str) -> Iterator[Way]:
    """Yield, for each size of slabs and number of spans, the mixture that takes the least, where it is one.

    A run's peak stands on what the runs before it keep: those keep least under one strategy, and the run at the peak
    may take least under another. Nothing is yielded where bytes are not known run by run.
    """
    if tried.request.strategy is not None:
        return
    cuts = {replace(way, strategy=""): None for way in tried.sparing(micro)}
    for cut in cuts:
        told = _parts(tried, rung, cut, micro, optimizer)
        found = [] if told is None else least_first(told[0], told[1])
        if found and len(set(found[0])) > 1:
            yield _with_names(cut, found[0])


def _fastest(
    tried: Tried, rung: Rung, way: Way, micro: int, optimizer: str
) -> list[tuple[str, ...]]:
    """Choices of a strategy for each run, the fastest first; none where bytes are not known run by run."""
    told = _parts(tried, rung, way, micro, optimizer)
    return [] if told is None else fastest_first(*told)[:_MOST_MIXTURES]


def _parts(
    tried: Tried, rung: Rung, way: Way, micro: int, optimizer: str
) -> tuple[dict[str, list[Part]], int, int] | None:
    """Return each run's part under each strategy, the bytes live before them, and how many may live."""
    parts: dict[str, list[Part]] = {}
    limit, start = 0, 0
    for name in tried.request.strategies():
        told = tried.prediction(tried.setting(rung, micro, optimizer, replace(way, strategy=name)))
        if told.by_run is None:
            return None
        beside = told.predicted_peak_bytes - told.live_bytes * (1 + SLACK_SHARE)
        limit = max(limit, int((tried.request.budget_bytes - beside) / (1 + SLACK_SHARE)) + 1)
        start = told.by_run.start_bytes
        work = zip(told.by_run.runs, told.by_run.multiplications, strict=True)
        parts[name] = [Part(*run, n * TIME_FACTORS[name]) for run, n in work]
    return parts, start, limit


def _with_names(way: Way, names: Sequence[str]) -> Way:
    return replace(way, strategy=names[0] if len(set(names)) == 1 else tuple(names))
