"""Whether a training may begin: its predicted peak fits into the budget, and into what the machine has left."""

import os

from revedge.devices import meter
from revedge.errors import BudgetError
from revedge.planner.plan import Plan
from revedge.units import format_bytes, parse_bytes

# Left to the system: so much, or a twentieth of its RAM.
RESERVE_BYTES, RESERVE_SHARE = 128 * 10**6, 20
_EASE_BYTES = 256 << 20
_PLANNER_BYTES = 16 << 20


def reserve_bytes() -> int:
    """Return what admission leaves to the system; the environment's REVEDGE_RESERVE, as 512MiB, says otherwise."""
    given = os.environ.get("REVEDGE_RESERVE")
    if given:
        return parse_bytes(given)
    return reserve_of(meter.total_bytes())


def reserve_of(total_bytes: int) -> int:
    """Return what is left to the system of a machine with so much RAM."""
    return max(RESERVE_BYTES, total_bytes // RESERVE_SHARE)


def running_reserve_bytes() -> int:
    """Return what must stay with the system while training runs.

    Less than `reserve_bytes`, so that a training admitted just so is not stopped by the next small thing.
    """
    reserve = reserve_bytes()
    return reserve - min(reserve // 2, _EASE_BYTES)


def room_bytes() -> int:
    """Return what a training may take of the machine now."""
    return max(0, meter.available_bytes() - reserve_bytes())


def admit(plan: Plan) -> None:
    """Refuse before the first step what cannot stay inside the budget, or what the machine has no room for.

    Raises:
        BudgetError: carries the predicted peak as the floor.
    """
    predicted = plan.predicted_peak_bytes
    if predicted > plan.budget_bytes:
        raise BudgetError(
            f"--budget {format_bytes(plan.budget_bytes)} is too small for this plan, whose predicted peak is "
            f"{format_bytes(predicted)}; give at least that, or let revedge plan choose",
            floor_bytes=predicted,
        )
    check_budget(plan.budget_bytes)
    room = room_bytes()
    if predicted > room:
        raise BudgetError(
            f"the predicted peak of {format_bytes(predicted)} is more than this machine has now: "
            f"{format_bytes(room)} are available (beside {format_bytes(reserve_bytes())} left to the system); give "
            "a smaller --budget, or end other programs",
            floor_bytes=predicted,
        )


def check_budget(budget_bytes: int) -> None:
    """Refuse a budget that is more than the whole machine.

    Raises:
        BudgetError: it is.
    """
    total = meter.total_bytes()
    most = max(0, total - reserve_of(total))
    if budget_bytes > most:
        raise BudgetError(
            f"--budget {format_bytes(budget_bytes)} is more than this machine has: {format_bytes(total)}, of "
            f"which {format_bytes(total - most)} are left to the system; give at most {format_bytes(most)}"
        )


def automatic_budget() -> int:
    """Return the budget of `--budget auto`: what may be taken now, less what the planner itself holds meanwhile.

    Raises:
        BudgetError: nothing may be.
    """
    found = room_bytes() - _PLANNER_BYTES
    if found <= 0:
        raise BudgetError(
            f"--budget auto: {format_bytes(meter.available_bytes())} are available, of which "
            f"{format_bytes(reserve_bytes())} are left to the system and {format_bytes(_PLANNER_BYTES)} are for "
            "planning; end other programs, lower REVEDGE_RESERVE, or give --budget as a size",
        )
    return found
