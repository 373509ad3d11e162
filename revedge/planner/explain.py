"""A search result in words and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from revedge.planner.plan import Plan
from revedge.planner.result import Alternative, Rejected, SearchResult
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime
from revedge.planner.way import Way
from revedge.units import format_bytes, format_seconds

_MOST_POINTS = 6  # of the front of memory against time, in words


def config(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values, without what stands elsewhere in the output."""
    values = dataclasses.asdict(plan)
    return {name: value for name, value in values.items() if name not in ("predicted_peak_bytes",)}


def payload(result: SearchResult, budget_bytes: int) -> dict[str, Any]:
    """Return the JSON object of `revedge plan`."""
    plan = result.plan
    return {
        "feasible": plan is not None,
        "budget_bytes": budget_bytes,
        "config": None if plan is None else config(plan),
        "predicted_peak_bytes": None if plan is None else plan.predicted_peak_bytes,
        "floor_bytes": result.floor_bytes,
        "rejected": [_rejected(each) for each in result.rejected],
        "alternatives": [_alternative(each) for each in result.alternatives],
        **({} if result.step_time is None else {"step_time": result.step_time.to_json()}),
        **({} if result.timeline is None else {"timeline": result.timeline}),
        **({} if result.applied is None else {"applied": result.applied}),
        **({} if not result.sites else {"sites": [_site(*each) for each in result.sites]}),
        **(
            {}
            if result.computed_peak_bytes is None
            else {"computed_peak_bytes": result.computed_peak_bytes}
        ),
        "tried": result.tried,
        "space": result.space,
        **({} if plan is not None else {"reason": result.reason, "way_out": result.way_out}),
    }


def payload_of_plan(plan: Plan) -> dict[str, Any]:
    """Return such an object for a plan whose search is not known."""
    return {
        "feasible": True,
        "budget_bytes": plan.budget_bytes,
        "config": config(plan),
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "floor_bytes": None,
        "rejected": [],
        "alternatives": [],
    }


def text(result: SearchResult) -> str:
    """Return lines for people; those of an infeasible result are its neighbors only."""
    lines: list[str] = []
    plan = result.plan
    if plan is not None:
        lines = _lines(plan, f"; least budget {format_bytes(result.floor_bytes)}")
        if result.step_time is not None:
            lines.append(time_text(result.step_time))
        if result.applied is not None:
            lines += [f"  {line}" for line in result.applied.splitlines()]
        if plan.micro_batch_size < plan.batch_size:
            why = "as asked" if result.micro_batch_fixed else "taken because nothing else fits"
            lines.append(
                f"note: batch norm sees {plan.micro_batch_size} samples at a time; that is another "
                f"training than with the whole batch, {why}"
            )
        lines += _front(result)
    if result.rejected:
        lines.append(f"not chosen{like_with_like(result.computed_peak_bytes)}:")
        lines += _rows(result.rejected)
    return "\n".join(lines)


def text_of_plan(plan: Plan) -> str:
    """Return lines for people of a plan whose search is not known."""
    return "\n".join(_lines(plan, ""))


def _lines(plan: Plan, more: str) -> list[str]:
    free = plan.budget_bytes - plan.predicted_peak_bytes
    return [
        f"{describe(Setting.of(plan))}",
        f"predicted peak {format_bytes(plan.predicted_peak_bytes)}{_how(plan)} of "
        f"{format_bytes(plan.budget_bytes)}, {format_bytes(free)} free{more}",
        "  " + "  ".join(f"{_label(k)} {format_bytes(v)}" for k, v in plan.parts.items()),
    ]


def _front(result: SearchResult) -> list[str]:
    """Return a line for each point of the front of memory against time, at most six, if there are two."""
    points = [each for each in result.alternatives if each.on_front]
    if result.plan is None or len(points) < 2:
        return []
    chosen = Setting.of(result.plan)
    kept = points
    if len(points) > _MOST_POINTS:  # evenly, with both ends and the choice
        step = (len(points) - 1) / (_MOST_POINTS - 1)
        kept = [points[round(step * n)] for n in range(_MOST_POINTS)]
        own = next((each for each in points if each.setting == chosen), None)
        if own is not None and own not in kept:
            place = min(
                range(1, _MOST_POINTS - 1),
                key=lambda n: abs(points.index(kept[n]) - points.index(own)),
            )
            kept[place] = own
    width = max(len(Way.of(each.setting).text()) for each in kept)
    left_out = f", {len(kept)} of {len(points)} points" if len(kept) < len(points) else ""
    return [
        f"memory against time{left_out}{like_with_like(result.computed_peak_bytes)}:",
        *(
            f"  {Way.of(each.setting).text():{width}}  {format_bytes(each.predicted_peak_bytes):>10}  {_pace(each)}"
            + ("  chosen" if each.setting == chosen else "")
            for each in kept
        ),
    ]


def _pace(each: Alternative) -> str:
    if each.step_time is None:
        return f"{each.time_factor:.2f} times the step of store"
    return f"{format_seconds(each.step_time.least_s)} to {format_seconds(each.step_time.most_s)}"


def like_with_like(computed_peak_bytes: int | None) -> str:
    """Return, for a rehearsed plan, what to compare computed bytes with; else nothing."""
    if computed_peak_bytes is None:
        return ""
    return f" (computed; so computed, the choice takes {format_bytes(computed_peak_bytes)})"


def _how(plan: Plan) -> str:
    return " (rehearsed)" if "spread_bytes" in plan.parts else ""


def time_text(found: StepTime) -> str:
    """Return the time of a step as people read it."""
    how = {
        "probes": "by two probes",
        "steps": "by real steps",
        "factors": "by comparison",
        "units": "by its units",
    }
    return (
        f"a step takes {format_seconds(found.least_s)} to {format_seconds(found.most_s)} on this machine "
        f"({how[found.source]})"
    )


def describe(setting: Setting) -> str:
    """Return one configuration in one line."""
    options = "".join(f" {name}={value}" for name, value in setting.model_options.items())
    batch = f"batch {setting.batch_size}"
    if setting.micro_batch_size != setting.batch_size:
        batch += f" in pieces of {setting.micro_batch_size}"
    precision = "" if setting.precision == "float32" else f" {setting.precision}"
    way = Way.of(setting).text()
    return f"{setting.model}{options} T={setting.timesteps} {batch} {setting.optimizer}{precision} {way}"


def _rows(rejected: Sequence[Rejected]) -> list[str]:
    width = max(len(describe(each.setting)) for each in rejected)
    return [
        f"  {describe(each.setting):{width}}  {format_bytes(each.predicted_peak_bytes):>10}  {each.reason}"
        for each in rejected
    ]


def _site(name: str, live_bytes: int) -> dict[str, Any]:
    return {"site": name, "live_bytes": live_bytes}


def _rejected(each: Rejected) -> dict[str, Any]:
    return {
        "config": each.setting.to_json(),
        "predicted_peak_bytes": each.predicted_peak_bytes,
        "missing_bytes": each.missing_bytes,
        "reason": each.reason,
    }


def _alternative(each: Alternative) -> dict[str, Any]:
    return {
        "config": each.setting.to_json(),
        "predicted_peak_bytes": each.predicted_peak_bytes,
        "time_factor": round(each.time_factor, 4),
        "on_front": each.on_front,
        **({} if each.step_time is None else {"step_time": each.step_time.to_json()}),
    }


def _label(part: str) -> str:
    return part.removesuffix("_bytes")
