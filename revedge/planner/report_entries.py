"""What a report says of one entry of a search, as `revedge.planner.explain.payload` has it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime
from revedge.units import format_seconds


def setting_of(config: Mapping[str, Any]) -> Setting:
    """Return the setting among the values of ``config``."""
    names = [each.name for each in dataclasses.fields(Setting)]
    return Setting.from_json({name: config[name] for name in names if name in config})


def identity_of(config: Mapping[str, Any]) -> str:
    """Return what two entries have in common only where they are of one setting."""
    return setting_of(config).key()


def time_of(each: Mapping[str, Any]) -> float:
    """Return the middle of the interval of a step, s; where it was not measured, the factor."""
    if "step_time" not in each:
        return float(each["time_factor"])
    return StepTime(**each["step_time"]).middle_s


def time_words(each: Mapping[str, Any]) -> str:
    """Return the interval of a step in words; where it was not measured, the factor."""
    if "step_time" not in each:
        return f"{each['time_factor']:.2f}"
    found = each["step_time"]
    return f"{format_seconds(found['least_s'])} to {format_seconds(found['most_s'])}"


def kind_of(part: str) -> str:
    """Return the kind of memory that a part of a prediction is of."""
    return part.removesuffix("_bytes")
