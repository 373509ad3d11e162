"""Puts measured times on what a search has found, and lets them decide where speed is asked for. Free of torch."""

import dataclasses
from collections.abc import Callable, Mapping

from revedge.planner import step_time
from revedge.planner.request import Request
from revedge.planner.result import Alternative, SearchResult
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime

MOST_PROBED = 6


def timed(
    found: SearchResult,
    request: Request,
    parts: Callable[[Setting], Mapping[str, int]],
    *,
    seconds: float = 10.0,
) -> SearchResult:
    """Return ``found`` with the time of a step for the plan and each alternative.

    The plan and what else is on the front of memory against time are probed, the rest is told by its factor against
    the plan. The front is drawn anew with these times. With ``--prefer speed`` the plan becomes the fastest
    alternative that fits, unless its interval overlaps with that of the plan.

    Args:
        found: of a search of ``request``.
        request: what was asked.
        parts: predicted bytes of a setting, by kind.
        seconds: for all probes together.
    """
    if found.plan is None:
        return found
    plan = Setting.of(found.plan)
    candidates = [each for each in found.alternatives if each.setting.key() != plan.key()]
    # Those that fit come first: they may become the plan.
    candidates.sort(
        key=lambda each: (each.predicted_peak_bytes > request.budget_bytes, not each.on_front)
    )
    probed = [plan, *(each.setting for each in candidates if each.on_front)][:MOST_PROBED]
    times = dict(
        zip(
            (each.key() for each in probed), step_time.measure(probed, seconds=seconds), strict=True
        )
    )
    own = times[plan.key()]
    if own is None:
        return found
    factor = next(
        each.time_factor for each in found.alternatives if each.setting.key() == plan.key()
    )
    alternatives = [
        dataclasses.replace(
            each,
            step_time=times.get(each.setting.key())
            or own.times(each.time_factor / factor, "factors"),
        )
        for each in found.alternatives
    ]
    found = dataclasses.replace(found, alternatives=_on_front(alternatives), step_time=own)
    if request.prefer != "speed":
        return found
    fitting = [
        each for each in found.alternatives if each.predicted_peak_bytes <= request.budget_bytes
    ]
    fastest = min(fitting, key=lambda each: _time(each).middle_s)
    if _time(fastest).source != "probes" or _time(fastest).most_s >= own.least_s:
        return found
    chosen = request.plan(fastest.setting, parts(fastest.setting))
    return dataclasses.replace(found, plan=chosen, step_time=fastest.step_time)


def _time(each: Alternative) -> StepTime:
    assert each.step_time is not None
    return each.step_time


def _on_front(alternatives: list[Alternative]) -> tuple[Alternative, ...]:
    """Return them fastest first, with those marked than which nothing is faster and takes less."""
    marked: list[Alternative] = []
    least: int | None = None
    for each in sorted(
        alternatives, key=lambda each: (_time(each).middle_s, each.predicted_peak_bytes)
    ):
        marked.append(
            dataclasses.replace(each, on_front=least is None or each.predicted_peak_bytes < least)
        )
        least = min(each.predicted_peak_bytes, least or each.predicted_peak_bytes)
    return tuple(marked)
