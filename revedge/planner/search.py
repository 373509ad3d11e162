"""Chooses the training for a number of bytes, and says why not another one. Free of torch.

Order of wishes: the full batch in one piece (a smaller micro-batch changes batch norm, so it is the
last resort), then the preferred optimizer, then the best rung of the ladder (what ``--prefer``
names), then the fastest way of saving memory that fits. With ``--prefer speed`` the way comes
before the rung. Memory grows along a rising ladder, so the best rung is bisected; every
configuration that is accepted or called rejected was itself predicted, none is extrapolated.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from revedge.errors import BudgetError, UsageError
from revedge.planner import descent
from revedge.planner.cost import Prediction
from revedge.planner.ladder import Ladder, Rung, build
from revedge.planner.plan import Plan
from revedge.planner.request import Request
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime
from revedge.planner.way import Way
from revedge.units import format_bytes

_NARROW = (4, 8, 12, 16, 24, 32, 48, 64)  # widths that are offered where nothing fits
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
    rungs: tuple[descent.Rung, ...] = ()  # the plan, and what lies below it
    reason: str = ""
    way_out: str = ""
    floor_setting: Setting | None = None
    step_time: StepTime | None = None  # of the plan

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
            for optimizer in self._request.optimizers():
                found = self._best(micro, optimizer)
                if found is not None:
                    return self._found(*found, micro, optimizer, floor, floor_setting)
        raise AssertionError("the floor fits, so the smallest micro-batch does")

    def _found(
        self, place: int, way: Way, micro: int, optimizer: str, floor: int, floor_setting: Setting
    ) -> SearchResult:
        setting = self._setting(self._rungs[place], micro, optimizer, way)
        return SearchResult(
            plan=self._request.plan(setting, self._prediction(setting).parts),
            floor_bytes=floor,
            floor_setting=floor_setting,
            rejected=self._neighbors(place, way, micro, optimizer),
            alternatives=self._alternatives(self._rungs[place], micro, optimizer),
            tried=len(self._known),
            space=self._space(),
        )

    def _possible(self, ladder: Ladder) -> list[Rung]:
        """Rungs that can exist. On a rising one, those below the first that can are left out."""
        micro = self._request.micro_batches()[-1]
        optimizer, way = self._request.optimizers()[-1], self._request.ways(micro)[-1]
        rungs = list(ladder.rungs)
        if ladder.rising:
            while rungs and self._peak(rungs[0], micro, optimizer, way) is None:
                rungs.pop(0)
                if len(self._impossible) > 8:
                    break
        else:
            rungs = [rung for rung in rungs if self._peak(rung, micro, optimizer, way) is not None]
        if not rungs or len(self._impossible) > 8:
            raise self._impossible[-1]
        return rungs

    def _setting(self, rung: Rung, micro: int, optimizer: str, way: Way) -> Setting:
        return self._request.setting(
            rung.model, rung.options, rung.timesteps, micro, optimizer, way
        )

    def _prediction(self, setting: Setting) -> Prediction:
        key = setting.key()
        if key not in self._known:
            self._known[key] = self._predict(setting)
            self._progress(len(self._known))
        return self._known[key]

    def _peak(self, rung: Rung, micro: int, optimizer: str, way: Way) -> int | None:
        """Predicted peak, None for a setting that cannot exist."""
        try:
            setting = self._setting(rung, micro, optimizer, way)
            return self._prediction(setting).predicted_peak_bytes
        except UsageError as error:
            self._impossible.append(error)
            return None

    def _fits(self, rung: Rung, micro: int, optimizer: str, way: Way) -> bool:
        peak = self._peak(rung, micro, optimizer, way)
        return peak is not None and peak <= self._request.budget_bytes

    def _sparing(self, micro: int) -> list[Way]:
        """The ways that can take the least: an update in backward never takes more than one after it."""
        found = self._request.ways(micro)
        updating = [way for way in found if way.update_in_backward]
        return updating or found

    def _floor(self) -> tuple[int, Setting]:
        """The least peak. A whole batch can beat a micro-batch, which has to sum gradients."""
        optimizers = self._request.optimizers()
        settings = [
            self._setting(rung, micro, optimizer, way)
            for rung in (self._rungs[:1] if self._rising else self._rungs)
            for micro in {self._request.micro_batches()[0], self._request.micro_batches()[-1]}
            for optimizer in optimizers
            for way in self._sparing(micro)
        ]
        best = min(settings, key=lambda each: self._prediction(each).predicted_peak_bytes)
        return self._prediction(best).predicted_peak_bytes, best

    def _best(self, micro: int, optimizer: str) -> tuple[int, Way] | None:
        """Return the place of the best rung, and the fastest way that fits there."""
        if self._request.prefer == "speed":
            for way in self._request.ways(micro):
                place = self._climb([way], micro, optimizer)
                if place is not None:
                    return place, way
            return None
        place = self._climb(self._sparing(micro), micro, optimizer)
        if place is None:
            return None
        rung = self._rungs[place]
        ways = self._request.ways(micro)
        return place, next(way for way in ways if self._fits(rung, micro, optimizer, way))

    def _climb(self, ways: Iterable[Way], micro: int, optimizer: str) -> int | None:
        """Return the place of the best rung that fits with any of ``ways``."""
        best: int | None = None
        if not self._rising:
            for way in ways:
                above = range(len(self._rungs) - 1, -1 if best is None else best, -1)
                fits = (p for p in above if self._fits(self._rungs[p], micro, optimizer, way))
                best = next(fits, best)
            return best
        for way in ways:  # each must beat the best so far, which mostly costs one prediction
            best = self._climb_on(best, way, micro, optimizer)
        return best

    def _climb_on(self, best: int | None, way: Way, micro: int, optimizer: str) -> int | None:
        """Return the last rung above ``best`` that fits, or ``best``."""
        low = -1 if best is None else best  # fits, or lies before the first
        high = len(self._rungs)  # does not fit, or lies behind the last
        peaks: dict[int, int] = {}
        while high - low > 1:
            guess = self._guess(low, high, peaks)
            peak = self._peak(self._rungs[guess], micro, optimizer, way)
            if peak is not None:
                peaks[guess] = peak
            if peak is not None and peak <= self._request.budget_bytes:
                low = guess
            else:
                high = guess
        return low if low >= 0 else None

    def _guess(self, low: int, high: int, peaks: Mapping[int, int]) -> int:
        """Return a place between ``low`` and ``high``, neither included: where a line through two peaks meets the
        budget (memory is almost a line), but every third time the middle, so that a bent one is bisected.
        """
        below = sorted(place for place in peaks if place <= low)[-2:]
        pair = [*below, *(place for place in peaks if place == high)][-2:]
        if len(pair) < 2:
            return low + 1
        guess = (low + high) // 2
        rise = peaks[pair[1]] - peaks[pair[0]]
        if rise > 0 and len(peaks) % 3:
            left = self._request.budget_bytes - peaks[pair[0]]
            guess = pair[0] + left * (pair[1] - pair[0]) // rise
        return max(low + 1, min(high - 1, guess))

    def _alternatives(self, rung: Rung, micro: int, optimizer: str) -> tuple[Alternative, ...]:
        found: list[Alternative] = []
        least: int | None = None
        for way in self._request.ways(micro):  # the fastest first
            setting = self._setting(rung, micro, optimizer, way)
            peak = self._prediction(setting).predicted_peak_bytes
            found.append(
                Alternative(
                    setting=setting,
                    predicted_peak_bytes=peak,
                    time_factor=way.time_factor,
                    on_front=least is None or peak < least,
                )
            )
            least = peak if least is None else min(least, peak)
        return tuple(found)

    def _space(self) -> int:
        sizes = self._request.micro_batches()
        ways = sum(len(self._request.ways(micro)) for micro in sizes)
        return len(self._rungs) * ways * len(self._request.optimizers())

    def _neighbors(self, place: int, way: Way, micro: int, optimizer: str) -> tuple[Rejected, ...]:
        """What differs from the choice in one thing: why not that."""
        rung, found = self._rungs[place], list[Rejected | None]()
        own_bytes = self._peak(rung, micro, optimizer, way)
        assert own_bytes is not None
        for other in self._request.ways(micro):
            same = (
                (other.strategy == way.strategy)
                + (other.slab_bytes == way.slab_bytes)
                + (other.update_in_backward == way.update_in_backward)
            )
            if same == 2:
                setting = self._setting(rung, micro, optimizer, other)
                rejected = self._reject(setting, _against(other, way))
                # What is slower and takes as much is no choice that anybody could want.
                if rejected.predicted_peak_bytes < own_bytes or other.time_factor < way.time_factor:
                    found.append(rejected)
        if place + 1 < len(self._rungs):
            above = self._rungs[place + 1]
            found.append(self._nearest(above, micro, optimizer, f"more {self._goal}"))
        preferred = self._request.optimizers()[0]
        if optimizer != preferred:
            found.append(self._nearest(rung, micro, preferred, f"{preferred}, which is preferred"))
        sizes = self._request.micro_batches()
        if micro != sizes[0]:
            larger = sizes[sizes.index(micro) - 1]
            found.append(self._nearest(rung, larger, optimizer, "a larger micro-batch"))
        return tuple(each for each in found if each is not None)

    def _nearest(self, rung: Rung, micro: int, optimizer: str, what: str) -> Rejected | None:
        """The way that takes the least memory at another rung, optimizer or micro-batch."""
        peaks = {w: self._peak(rung, micro, optimizer, w) for w in self._sparing(micro)}
        known = {w: peak for w, peak in peaks.items() if peak is not None}
        if not known:
            return None
        way = min(known, key=known.__getitem__)
        return self._reject(self._setting(rung, micro, optimizer, way), what)

    def _reject(self, setting: Setting, what: str) -> Rejected:
        peak = self._prediction(setting).predicted_peak_bytes
        missing = max(0, peak - self._request.budget_bytes)
        reason = f"{what}, but {format_bytes(missing)} over the budget" if missing else what
        return Rejected(
            setting=setting, predicted_peak_bytes=peak, missing_bytes=missing, reason=reason
        )

    def _infeasible(self, floor: int, setting: Setting) -> SearchResult:
        request = self._request
        micro, optimizer = setting.micro_batch_size, setting.optimizer
        best = Way.of(setting)
        rejected = [
            self._reject(replace(setting, strategy=way.strategy), "the least that was asked for")
            for way in self._sparing(micro)
            if way.slab_bytes == best.slab_bytes
        ]
        missing = floor - request.budget_bytes
        return SearchResult(
            plan=None,
            floor_bytes=floor,
            floor_setting=setting,
            rejected=tuple(rejected),
            way_out=" ".join(self._ways_out(floor, setting, optimizer, best)),
            tried=len(self._known),
            space=self._space(),
            reason=(
                f"--budget {format_bytes(request.budget_bytes)} is too small for {setting.model} "
                f"with T={setting.timesteps}: it takes at least {format_bytes(floor)} "
                f"({best.text()}, micro-batch {micro}), {format_bytes(missing)} more"
            ),
        )

    def _ways_out(self, floor: int, setting: Setting, optimizer: str, way: Way) -> list[str]:
        """Three things to change, as far as there are three that help."""
        request = self._request
        parts = self._prediction(setting).parts
        fixed = parts.get("base_bytes", 0) + parts.get("supervisor_bytes", 0)
        found = [f"give --budget {-(-floor // 2**20)}MiB or more"]
        if fixed >= request.budget_bytes:
            return [*found, f"(no smaller network helps: torch alone takes {format_bytes(fixed)})"]
        options = {k: v for k, v in setting.model_options.items() if k not in request.model_options}
        micro = setting.micro_batch_size
        fewer = self._last_fitting(
            [
                Rung(model=setting.model, timesteps=t, options=options)
                for t in range(1, setting.timesteps)
            ],
            micro, optimizer, way,
        )  # fmt: skip
        if fewer is not None:
            found.append(f"or --timesteps {fewer.timesteps}")
        narrower = self._last_fitting(
            [
                Rung(model=setting.model, timesteps=setting.timesteps, options={**options, "width": n})
                for n in _NARROW
                if n < setting.model_options.get("width", _NARROW[-1] + 1)
            ],
            micro, optimizer, way,
        )  # fmt: skip
        if narrower is not None:
            found.append(f"or --width {narrower.options['width']}")
        if request.optimizer is None and optimizer != "sgd":
            leaner = self._peak(
                Rung(model=setting.model, timesteps=setting.timesteps, options=options),
                micro, "sgd", way,
            )  # fmt: skip
            if leaner is not None and leaner <= request.budget_bytes:
                found.append("or --optimizer sgd")
        if len(found) == 1:
            found.append("or take a smaller model or smaller frames")
        return found

    def _last_fitting(self, rungs: list[Rung], micro: int, optimizer: str, way: Way) -> Rung | None:
        """Return the best of ``rungs``, which rise, that fits."""
        kept, self._rungs = self._rungs, rungs
        try:
            place = self._climb_on(None, way, micro, optimizer)
        finally:
            self._rungs = kept
        return None if place is None else rungs[place]


def _against(other: Way, chosen: Way) -> str:
    factor = other.time_factor / chosen.time_factor
    if abs(factor - 1) < 0.005:
        return "as fast"
    return "faster" if factor < 1 else f"slower (about {factor:.2f} times the step)"
