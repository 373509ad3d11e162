"""Puts measured times on what a search has found, and lets them decide where speed is asked for. Free of torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from revedge.planner import step_time
from revedge.planner.plan import Plan
from revedge.planner.precision import cpu_lacks_bfloat16
from revedge.planner.process import Ask
from revedge.planner.request import Request
from revedge.planner.result import Alternative, Rejected, SearchResult
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime
from revedge.units import format_bytes

Units = Callable[[Sequence[Setting], float], Sequence[StepTime | None]]

MOST_PROBED = 6
SECONDS = 3.0  # for all probes of a plan, which is to be there within ten
FASTER_BY = 1.1  # so much bfloat16 has to save, or rounding is worth more


def timed(
    found: SearchResult,
    request: Request,
    parts: Callable[[Setting], Mapping[str, int]],
    *,
    units: Units | None = None,
    ask: Ask | None = None,
    seconds: float = SECONDS,
) -> SearchResult:
    """Return ``found`` with the time of a step for the plan and each alternative.

    Ways are ranked by their units. The plan and what else is on the front of memory against time are probed as whole
    steps, which are the more accurate; the rest is told by its units against those of the plan, or where these are not
    known by its factor. The front is drawn anew with these times. With ``--prefer speed`` the plan becomes the fastest
    alternative that fits, unless its interval overlaps with that of the plan.

    Args:
        found: of a search of ``request``.
        request: what was asked.
        parts: predicted bytes of a setting, by kind.
        units: tells times from units, in so many seconds; None where it does not.
        ask: a process that is at hand for probes.
        seconds: for all probes together.
    """
    if found.plan is None:
        return found
    plan = Setting.of(found.plan)
    told = _told_by_units(found, plan, units, seconds / 2)
    if all(each.setting.key() in told for each in found.alternatives):
        ranked = [replace(each, step_time=told[each.setting.key()]) for each in found.alternatives]
        found = replace(found, alternatives=_on_front(ranked))
    candidates = [each for each in found.alternatives if each.setting.key() != plan.key()]
    # Those that fit come first: they may become the plan.
    candidates.sort(
        key=lambda each: (each.predicted_peak_bytes > request.budget_bytes, not each.on_front)
    )
    probed = [plan, *(each.setting for each in candidates if each.on_front)][:MOST_PROBED]
    times = dict(
        zip(
            (each.key() for each in probed),
            step_time.measure(probed, seconds=seconds / 2 if told else seconds, ask=ask),
            strict=True,
        )
    )
    own = times[plan.key()]
    if own is None:
        return found
    factor = next(
        each.time_factor for each in found.alternatives if each.setting.key() == plan.key()
    )

    def time_of(each: Alternative) -> StepTime:
        key = each.setting.key()
        if plan.key() in told and key in told:
            by_comparison = own.times(told[key].middle_s / told[plan.key()].middle_s, "units")
        else:
            by_comparison = own.times(each.time_factor / factor, "factors")
        return times.get(key) or by_comparison

    alternatives = [replace(each, step_time=time_of(each)) for each in found.alternatives]
    found = replace(found, alternatives=_on_front(alternatives), step_time=own)
    if request.prefer != "speed":
        return found
    fitting = [
        each for each in found.alternatives if each.predicted_peak_bytes <= request.budget_bytes
    ]
    fastest = min(fitting, key=lambda each: _time(each).middle_s)
    if _time(fastest).source != "probes" or _time(fastest).most_s >= own.least_s:
        return found
    chosen = request.plan(fastest.setting, parts(fastest.setting))
    return replace(found, plan=chosen, step_time=fastest.step_time)


def _told_by_units(
    found: SearchResult, plan: Setting, units: Units | None, seconds: float
) -> dict[str, StepTime]:
    """Return the times that units tell, by the keys of settings; the plan is asked for first."""
    if units is None:
        return {}
    settings = [plan, *(each.setting for each in found.alternatives)]
    pairs = zip(settings, units(settings, seconds), strict=True)
    return {setting.key(): time for setting, time in pairs if time is not None}


def in_less_precision(
    found: SearchResult,
    request: Request,
    parts: Callable[[Setting], Mapping[str, int]],
    *,
    ask: Ask | None = None,
    seconds: float = SECONDS,
) -> SearchResult:
    """Return ``found`` in bfloat16 where that fits and a step is measured to be faster; else with the reason why not.

    It saves no bytes, so there is no other reason to take it. Both probes are of the same frames, so that their
    shortest steps are compared, not the intervals.

    Args:
        found: of a search of ``request``, with times.
        request: what was asked.
        parts: predicted bytes of a setting, by kind.
        ask: a process that is at hand for the probe.
        seconds: for it.
    """
    own = found.step_time
    if found.plan is None or own is None:
        return found
    setting = replace(Setting.of(found.plan), precision="bfloat16")
    low_parts = parts(setting)
    peak = sum(low_parts.values())
    missing, time = max(0, peak - request.budget_bytes), None
    why = cpu_lacks_bfloat16() if request.device == "cpu" else None
    if missing:
        why = f"{format_bytes(missing)} over the budget"
    if why is None:
        time = step_time.measure([setting], seconds=seconds, ask=ask)[0]
    if time is None or time.least_s * FASTER_BY > own.least_s:
        rejected = Rejected(
            setting=setting,
            predicted_peak_bytes=peak,
            missing_bytes=missing,
            reason=f"bfloat16, but {why or 'it is not measured to be faster'}",
        )
        return replace(found, rejected=(*found.rejected, rejected))
    plan = request.plan(setting, low_parts)
    same = next(each for each in found.alternatives if each.setting.key() == _key(found.plan))
    low = replace(
        same,
        setting=setting,
        predicted_peak_bytes=peak,
        time_factor=same.time_factor * time.middle_s / own.middle_s,
        step_time=time,
    )
    alternatives = _on_front([*found.alternatives, low])
    return replace(found, plan=plan, step_time=time, alternatives=alternatives)


def _key(plan: Plan) -> str:
    return Setting.of(plan).key()


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
        marked.append(replace(each, on_front=least is None or each.predicted_peak_bytes < least))
        least = min(each.predicted_peak_bytes, least or each.predicted_peak_bytes)
    return tuple(marked)
