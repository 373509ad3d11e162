"""Chooses the training for a number of bytes, and says why not another one. Free of torch.

Order of wishes: the full batch in one piece (a smaller micro-batch changes batch norm, so it is the
last resort), then the best rung of the ladder (what ``--prefer`` names), then the fastest strategy
that fits. With ``--prefer speed`` the strategy comes before the rung. Memory grows along a rising
ladder, so the best rung is bisected; every configuration that is accepted or called rejected was
itself predicted, none is extrapolated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from revedge.errors import BudgetError, UsageError
from revedge.planner.cost import Prediction
from revedge.planner.ladder import Ladder, Rung, build
from revedge.planner.plan import Plan
from revedge.planner.request import TIME_FACTORS, Request
from revedge.planner.setting import Setting
from revedge.units import format_bytes

Predict = Callable[[Setting], Prediction]
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A neighbor of the choice (or, where nothing fits, the nearest miss) and why it is not chosen."""

    setting: Setting
    predicted_peak_bytes: int
    missing_bytes: int  # 0: it fits, but something else is better
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What was found. ``plan`` is None where nothing fits; ``way_out`` then says what to change."""

    plan: Plan | None
    floor_bytes: int  # the smallest budget that the request is feasible with
    tried: int  # configurations predicted
    rejected: tuple[Rejected, ...] = ()
    reason: str = ""
    way_out: str = ""
    floor_setting: Setting | None = None

    def require(self) -> Plan:
        """Return the plan.

        Raises:
            BudgetError: nothing fits.
        """
        if self.plan is None:
            raise BudgetError(f"{self.reason}; {self.way_out}", floor_bytes=self.floor_bytes)
        return self.plan


def search(
    request: Request,
    families: Mapping[str, list[str]],
    predict: Predict,
    progress: Progress = lambda tried: None,
) -> SearchResult:
    """Return the best plan for ``request``, or the floor.

    Args:
        request: what is given and what is free.
        families: models of each family.
        predict: memory of a setting; raises UsageError for one that cannot exist.
        progress: told the number of configurations tried so far.

    Raises:
        UsageError: the model is not known, or no setting of it can exist.
    """
    return _Search(request, build(request, families), predict, progress).run()


class _Search:
    def __init__(
        self, request: Request, ladder: Ladder, predict: Predict, progress: Progress
    ) -> None:
        self._request, self._predict, self._progress = request, predict, progress
        self._known: dict[str, Prediction] = {}
        self._impossible: list[UsageError] = []
        self._goal = ladder.goal
        self._rising = ladder.rising
        self._rungs = self._possible(ladder)

    def run(self) -> SearchResult:
        floor, floor_setting = self._floor()
        if floor > self._request.budget_bytes:
            return self._infeasible(floor, floor_setting)
        for micro in self._request.micro_batches():
            found = self._best(micro)
            if found is not None:
                setting = self._setting(found[0], micro, found[1])
                return SearchResult(
                    plan=self._request.plan(setting, self._prediction(setting).parts),
                    floor_bytes=floor,
                    floor_setting=floor_setting,
                    rejected=self._neighbors(*found, micro),
                    tried=len(self._known),
                )
        raise AssertionError("the floor fits, so the smallest micro-batch does")

    def _possible(self, ladder: Ladder) -> list[Rung]:
        """Rungs that can exist. On a rising one, those below the first that can are left out."""
        micro = self._request.micro_batches()[-1]
        rungs = list(ladder.rungs)
        if ladder.rising:
            while rungs and self._peak(rungs[0], micro, self._request.strategies()[-1]) is None:
                rungs.pop(0)
                if len(self._impossible) > 8:
                    break
        else:
            strategy = self._request.strategies()[-1]
            rungs = [rung for rung in rungs if self._peak(rung, micro, strategy) is not None]
        if not rungs or len(self._impossible) > 8:
            raise self._impossible[-1]
        return rungs

    def _setting(self, rung: Rung, micro: int, strategy: str) -> Setting:
        return self._request.setting(rung.model, rung.options, rung.timesteps, micro, strategy)

    def _prediction(self, setting: Setting) -> Prediction:
        key = setting.key()
        if key not in self._known:
            self._known[key] = self._predict(setting)
            self._progress(len(self._known))
        return self._known[key]

    def _peak(self, rung: Rung, micro: int, strategy: str) -> int | None:
        """Predicted peak, None for a setting that cannot exist."""
        try:
            return self._prediction(self._setting(rung, micro, strategy)).predicted_peak_bytes
        except UsageError as error:
            self._impossible.append(error)
            return None

    def _fits(self, rung: Rung, micro: int, strategy: str) -> bool:
        peak = self._peak(rung, micro, strategy)
        return peak is not None and peak <= self._request.budget_bytes

    def _floor(self) -> tuple[int, Setting]:
        micro = self._request.micro_batches()[-1]
        rungs = self._rungs[:1] if self._rising else self._rungs
        settings = [
            self._setting(rung, micro, strategy)
            for rung in rungs
            for strategy in self._request.strategies()
        ]
        best = min(settings, key=lambda each: self._prediction(each).predicted_peak_bytes)
        return self._prediction(best).predicted_peak_bytes, best

    def _best(self, micro: int) -> tuple[Rung, str] | None:
        strategies = self._request.strategies()
        if self._request.prefer == "speed":
            for strategy in strategies:
                rung = self._climb(lambda rung, s=strategy: self._fits(rung, micro, s))  # type: ignore[misc]
                if rung is not None:
                    return rung, strategy
            return None
        rung = self._climb(
            lambda rung: any(self._fits(rung, micro, s) for s in reversed(strategies))
        )
        if rung is None:
            return None
        return rung, next(s for s in strategies if self._fits(rung, micro, s))

    def _climb(self, fits: Callable[[Rung], bool]) -> Rung | None:
        """Return the best rung that fits."""
        rungs = self._rungs
        if not self._rising:
            return next((rung for rung in reversed(rungs) if fits(rung)), None)
        if not fits(rungs[0]):
            return None
        low, step = 0, 1  # rungs[low] fits
        while low + step < len(rungs) and fits(rungs[low + step]):
            low, step = low + step, step * 2
        high = min(low + step, len(rungs))  # rungs[high] does not fit, or is beyond the end
        while high - low > 1:
            middle = (low + high) // 2
            if fits(rungs[middle]):
                low = middle
            else:
                high = middle
        return rungs[low]

    def _neighbors(self, rung: Rung, strategy: str, micro: int) -> tuple[Rejected, ...]:
        chosen = self._setting(rung, micro, strategy)
        found: list[Rejected | None] = [
            self._reject(replace(chosen, strategy=other), _against(other, strategy))
            for other in self._request.strategies()
            if other != strategy
        ]
        place = self._rungs.index(rung)
        if place + 1 < len(self._rungs):
            found.append(self._nearest(self._rungs[place + 1], micro, f"more {self._goal}"))
        sizes = self._request.micro_batches()
        if micro != sizes[0]:
            larger = sizes[sizes.index(micro) - 1]
            found.append(self._nearest(rung, larger, "a larger micro-batch"))
        return tuple(each for each in found if each is not None)

    def _nearest(self, rung: Rung, micro: int, what: str) -> Rejected | None:
        """The strategy that takes the least memory at another rung or micro-batch."""
        peaks = {s: self._peak(rung, micro, s) for s in self._request.strategies()}
        known = {s: peak for s, peak in peaks.items() if peak is not None}
        if not known:
            return None
        return self._reject(self._setting(rung, micro, min(known, key=known.__getitem__)), what)

    def _reject(self, setting: Setting, what: str) -> Rejected:
        peak = self._prediction(setting).predicted_peak_bytes
        missing = max(0, peak - self._request.budget_bytes)
        reason = f"{what}, but {format_bytes(missing)} over the budget" if missing else what
        return Rejected(
            setting=setting, predicted_peak_bytes=peak, missing_bytes=missing, reason=reason
        )

    def _infeasible(self, floor: int, setting: Setting) -> SearchResult:
        request = self._request
        rejected = [
            self._reject(replace(setting, strategy=s), "the least that was asked for")
            for s in request.strategies()
        ]
        parts = self._prediction(setting).parts
        fixed = parts.get("base_bytes", 0) + parts.get("supervisor_bytes", 0)
        fewer = self._fewer_timesteps(setting)
        ways = [f"give --budget {-(-floor // 2**20)}MiB or more"]
        if fewer:
            ways.append(f"or --timesteps {fewer}")
        elif fixed >= request.budget_bytes:
            ways.append(f"(no smaller network helps: torch alone takes {format_bytes(fixed)})")
        else:
            ways.append("or take a smaller model or smaller frames")
        missing = floor - request.budget_bytes
        return SearchResult(
            plan=None,
            floor_bytes=floor,
            floor_setting=setting,
            rejected=tuple(rejected),
            tried=len(self._known),
            reason=(
                f"--budget {format_bytes(request.budget_bytes)} is too small for {setting.model} "
                f"with T={setting.timesteps}: it takes at least {format_bytes(floor)} (strategy "
                f"{setting.strategy}, micro-batch {setting.micro_batch_size}), "
                f"{format_bytes(missing)} more"
            ),
            way_out=" ".join(ways),
        )

    def _fewer_timesteps(self, setting: Setting) -> int | None:
        """Largest T below the one asked for that fits with everything else at its least."""
        options = {
            k: v for k, v in setting.model_options.items() if k not in self._request.model_options
        }
        rungs = [
            Rung(model=setting.model, timesteps=t, options=options)
            for t in range(1, setting.timesteps)
        ]
        if not rungs:
            return None
        kept, self._rungs, rising, self._rising = self._rungs, rungs, self._rising, True
        micro, strategies = setting.micro_batch_size, self._request.strategies()
        try:
            rung = self._climb(
                lambda rung: any(self._fits(rung, micro, s) for s in reversed(strategies))
            )
        finally:
            self._rungs, self._rising = kept, rising
        return None if rung is None else rung.timesteps


def _against(other: str, chosen: str) -> str:
    factor = TIME_FACTORS[other] / TIME_FACTORS[chosen]
    return "faster" if factor < 1 else f"slower (about {factor:.2f} times the step)"
