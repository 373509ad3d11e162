"""What a search has found: the plan, what else was possible, or the floor and what to change."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from revedge.errors import BudgetError
from revedge.planner import descent
from revedge.planner.plan import Plan
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A neighbor of the choice (or, where nothing fits, the nearest miss) and why it is not chosen."""

    setting: Setting
    predicted_peak_bytes: int
    missing_bytes: int  # 0: it fits, but something else is better
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """One way of saving memory at the chosen network, batch and optimizer."""

    setting: Setting
    predicted_peak_bytes: int
    time_factor: float  # of a step, in sizes of that of `store`
    on_front: bool  # nothing takes less memory and is as fast
    step_time: StepTime | None = None  # None: not asked for, or not known (another board)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What was found. ``plan`` is None where nothing fits; ``way_out`` then says what to change."""

    plan: Plan | None
    floor_bytes: int  # the smallest budget that the request is feasible with
    tried: int  # configurations predicted
    space: int = 0  # configurations among which it was chosen
    rejected: tuple[Rejected, ...] = ()
    alternatives: tuple[Alternative, ...] = ()  # the fastest first
    timeline: Mapping[str, Any] | None = None  # see timeline.py; for a report
    sites: tuple[tuple[str, int], ...] = ()  # of a step, and the most bytes that live during each
    rungs: tuple[descent.Rung, ...] = ()  # the plan, and what lies below it
    reason: str = ""
    way_out: str = ""
    floor_setting: Setting | None = None
    micro_batch_fixed: bool = False  # by the user
    computed_peak_bytes: int | None = None  # of the plan, where its prediction is rehearsed instead
    step_time: StepTime | None = None  # of the plan
    applied: str | None = None  # of a user's module: what is a run, and what stays on autograd

    def require(self) -> Plan:
        """Return the plan.

        Raises:
            BudgetError: nothing fits.
        """
        if self.plan is None:
            raise BudgetError(f"{self.reason}; {self.way_out}", floor_bytes=self.floor_bytes)
        return self.plan
