"""After a trainer has ended for want of memory: which rung to go on with, once the machine has room for it."""

import time
from collections.abc import Callable
from pathlib import Path

from revedge.devices import admission, meter
from revedge.devices.atomic import replace_text
from revedge.devices.pressure import PAUSE_LIMIT_S
from revedge.devices.run_folder import RunFolder
from revedge.errors import BudgetError, PlanFormatError, RevedgeError
from revedge.planner.descent import Rung, dump, load, rungs_below
from revedge.planner.plan import Plan
from revedge.units import format_bytes

_LOOK_S = 0.2
_SETTLED_S = 2.0  # programs that end give their memory back piece by piece
_GROWTH_BYTES = 1 << 20


class Recovery:
    """Finds the next rung for one run.

    Args:
        run: its ladder was written when the run began, so that nothing must be computed when memory is short.
        say: takes what the user must know.
        should_stop: asked while waiting.
        patience_s: how long to wait for room on the machine.
    """

    def __init__(
        self,
        run: RunFolder,
        say: Callable[[str], None],
        should_stop: Callable[[], bool],
        patience_s: float = PAUSE_LIMIT_S,
    ) -> None:
        self.run, self.patience_s = run, patience_s
        self._say, self._should_stop = say, should_stop

    def next(self, plan: Plan, why: str, *, may_stay: bool) -> Rung | None:
        """Return the first rung that budget and machine have room for, and write its plan; None if stopped meanwhile.

        Args:
            plan: the one that did not do.
            why: what happened, for the error's text.
            may_stay: that was for what others took, so ``plan`` itself will do once they give back.

        Raises:
            BudgetError: there is no such rung; the last good checkpoint stays.
        """
        below = self._below(plan)
        rungs = [each for each in below if each.plan.predicted_peak_bytes <= plan.budget_bytes]
        if may_stay:
            rungs.insert(0, Rung(plan=plan))
        if not rungs:
            raise BudgetError(
                f"out of memory inside {format_bytes(plan.budget_bytes)} ({why}), and nothing that takes less is "
                f"left; give a larger --budget, fewer --timesteps or a smaller --model; the last checkpoint is in "
                f"{self.run.checkpoints}"
            )
        rung = self._wait_for_room(rungs, why)
        if rung is not None and rung.plan != plan:
            _write(self.run.plan, rung.plan.to_toml())
        return rung

    def _below(self, plan: Plan) -> list[Rung]:
        try:
            found = rungs_below(plan, load(self.run.ladder.read_text(encoding="utf-8")))
        except (OSError, PlanFormatError):
            found = None
        if found is not None:
            return found
        # A run begun without a ladder, or with another plan: predicted now, in a child.
        from revedge.devices.preparation import prepare_ladder

        rungs = load(prepare_ladder(plan))
        _write(self.run.ladder, dump(rungs))
        return [rung.of(plan) for rung in rungs[1:]]

    def _wait_for_room(self, rungs: list[Rung], why: str) -> Rung | None:
        """Return the first rung, or what fits of the others once the room has stopped growing."""
        grew_s = time.monotonic()
        until, told, most = grew_s + self.patience_s, False, -1
        least = min(rung.plan.predicted_peak_bytes for rung in rungs)
        while not self._should_stop():
            now_s = time.monotonic()
            room = max(0, meter.available_bytes() - admission.running_reserve_bytes())
            if room > most + _GROWTH_BYTES:
                most, grew_s = room, now_s
            fits = next((r for r in rungs if r.plan.predicted_peak_bytes <= room), None)
            if fits is rungs[0] or (fits and now_s >= min(grew_s + _SETTLED_S, until)):
                return fits
            if fits is None and now_s >= until:
                raise BudgetError(
                    f"the machine has room for {format_bytes(room)}, but the least that this training takes is "
                    f"{format_bytes(least)} ({why}); end other programs, then continue with revedge train --resume "
                    f"{self.run.path}",
                    floor_bytes=least,
                )
            if fits is None and not told:
                self._say(
                    f"waiting for memory: the machine has room for {format_bytes(room)}, {format_bytes(least)} are "
                    f"needed; at most {self.patience_s:.0f} s"
                )
                told = True
            time.sleep(_LOOK_S)
        return None


def _write(path: Path, text: str) -> None:
    try:
        replace_text(path, text)
    except OSError as error:
        raise RevedgeError(
            f"{path} cannot be written ({error.strerror}); the last checkpoint is kept: free some space, then "
            f"revedge train --resume {path.parent}"
        ) from None
