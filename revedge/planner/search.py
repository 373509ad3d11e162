"""Chooses the training for a number of bytes, and says why not another one. Free of torch.

Order of wishes: the full batch in one piece (a smaller micro-batch changes batch norm, so it is the
last resort), then the preferred optimizer (with ``--optimizer any``), then the best rung of the ladder (what
``--prefer`` names, then what else is free), then the fastest way of saving memory that fits, for each run of the
network. With ``--prefer speed`` the way comes before the rung. Memory grows along a rising ladder, so the best rung is
bisected; every configuration that is accepted or called rejected was itself predicted, none is extrapolated.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from revedge.errors import UsageError
from revedge.planner.cost import SLACK_SHARE, Prediction
from revedge.planner.ladder import Dimension, Ladder, Rung, build
from revedge.planner.mixture import Part, climbed, fastest_first
from revedge.planner.request import Request
from revedge.planner.result import Alternative, Rejected, SearchResult
from revedge.planner.setting import Setting
from revedge.planner.way import TIME_FACTORS, Way
from revedge.planner.way_out import ways_out
from revedge.units import format_bytes

_MOST_MIXTURES = (
    8  # that are predicted; the first fits, but where slabs let one run compute what another keeps
)

Predict = Callable[[Setting], Prediction]
Progress = Callable[[int], None]


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
        self._rising = ladder.rising
        self._rungs = self._possible(list(ladder.rungs))
        self._dimensions = ladder.dimensions

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
        self, rung: Rung, way: Way, micro: int, optimizer: str, floor: int, floor_setting: Setting
    ) -> SearchResult:
        way = self._mixed(rung, way, micro, optimizer)
        setting = self._setting(rung, micro, optimizer, way)
        return SearchResult(
            plan=self._request.plan(setting, self._prediction(setting).parts),
            floor_bytes=floor,
            floor_setting=floor_setting,
            rejected=self._neighbors(rung, way, micro, optimizer),
            alternatives=self._alternatives(rung, way, micro, optimizer),
            tried=len(self._known),
            space=self._space(),
        )

    def _possible(self, rungs: list[Rung]) -> list[Rung]:
        """Rungs that can exist. On a rising ladder, those below the first that can are left out."""
        micro = self._request.micro_batches()[-1]
        optimizer, way = self._request.optimizers()[-1], self._request.ways(micro)[-1]
        if self._rising:
            while rungs and self._peak(rungs[0], micro, optimizer, way) is None:
                rungs.pop(0)
                if len(self._impossible) > 8:
                    raise self._impossible[-1]
        else:
            peaks = [self._peak(rung, micro, optimizer, way) for rung in rungs]
            found = [(rung, peak) for rung, peak in zip(rungs, peaks, strict=True) if peak]
            if self._request.prefer == "accuracy-per-byte":
                chance = 1 / self._request.num_classes
                found.sort(key=lambda each: ((each[0].accuracy or 0) - chance) / each[1])
            rungs = [rung for rung, _ in found]
        if not rungs:
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

    def _bytes(self, setting: Setting) -> int:
        return self._prediction(setting).predicted_peak_bytes

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

    def _best(self, micro: int, optimizer: str) -> tuple[Rung, Way] | None:
        """Return the best rung, and the fastest way that fits there."""
        ways = self._request.ways(micro)
        if self._request.prefer == "speed":
            for way in ways:
                rung = self._highest([way], micro, optimizer)
                if rung is not None:
                    return rung, way
            return None
        # The slowest ways mostly reach highest; each of the others then costs one prediction to be ruled out.
        rung = self._highest(self._sparing(micro)[::-1], micro, optimizer)
        if rung is None:
            return None
        return rung, next(way for way in ways if self._fits(rung, micro, optimizer, way))

    def _highest(self, ways: Sequence[Way], micro: int, optimizer: str) -> Rung | None:
        """Climb the first dimension, then from there each of the others."""
        place = self._climb(self._rungs, ways, micro, optimizer, rising=self._rising)
        if place is None:
            return None
        rung = self._rungs[place]
        for dimension in self._dimensions[1:]:
            rungs = dimension.rungs(rung)
            place = self._climb(rungs, ways, micro, optimizer, rising=dimension.rising)
            rung = rung if place is None else rungs[place]
        return rung

    def _climb(
        self, rungs: list[Rung], ways: Iterable[Way], micro: int, optimizer: str, *, rising: bool
    ) -> int | None:
        """Return the place of the best rung that fits with any of ``ways``."""
        best: int | None = None
        for way in ways:  # each must beat the best so far, which mostly costs one prediction
            if rising:
                best = self._climb_on(rungs, best, way, micro, optimizer)
                continue
            above = range(len(rungs) - 1, -1 if best is None else best, -1)
            best = next((p for p in above if self._fits(rungs[p], micro, optimizer, way)), best)
        return best

    def _climb_on(
        self, rungs: list[Rung], best: int | None, way: Way, micro: int, optimizer: str
    ) -> int | None:
        """Return the last rung above ``best`` that fits, or ``best``."""
        low = -1 if best is None else best  # fits, or lies before the first
        high = len(rungs)  # does not fit, or lies behind the last
        peaks: dict[int, int] = {}
        while high - low > 1:
            guess = self._guess(low, high, peaks)
            peak = self._peak(rungs[guess], micro, optimizer, way)
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

    def _mixed(self, rung: Rung, way: Way, micro: int, optimizer: str) -> Way:
        """Give single runs of the network a faster strategy than ``way`` has, as long as that fits."""
        if self._request.strategy is not None or not isinstance(way.strategy, str):
            return way

        def with_names(names: Sequence[str]) -> Way:
            return replace(way, strategy=names[0] if len(set(names)) == 1 else tuple(names))

        def fits(names: Sequence[str]) -> bool:
            return self._fits(rung, micro, optimizer, with_names(names))

        for names in self._mixtures(rung, way, micro, optimizer):
            if fits(names):
                return with_names(names)
        runs = self._prediction(self._setting(rung, micro, optimizer, way)).runs
        faster = [
            s for s in self._request.strategies() if TIME_FACTORS[s] < TIME_FACTORS[way.strategy]
        ]
        return with_names(climbed([way.strategy] * runs, faster, fits))

    def _mixtures(self, rung: Rung, way: Way, micro: int, optimizer: str) -> list[tuple[str, ...]]:
        """Choices of a strategy for each run, the fastest first; none where bytes are not known run by run."""
        parts: dict[str, list[Part]] = {}
        limit, start = 0, 0
        for name in self._request.strategies():
            setting = self._setting(rung, micro, optimizer, replace(way, strategy=name))
            told = self._prediction(setting)
            if told.by_run is None:
                return []
            beside = told.predicted_peak_bytes - told.live_bytes * (1 + SLACK_SHARE)
            limit = max(limit, int((self._request.budget_bytes - beside) / (1 + SLACK_SHARE)) + 1)
            start = told.by_run.start_bytes
            work = zip(told.by_run.runs, told.by_run.multiplications, strict=True)
            parts[name] = [Part(*run, n * TIME_FACTORS[name]) for run, n in work]
        return fastest_first(parts, start, limit)[:_MOST_MIXTURES]

    def _alternatives(
        self, rung: Rung, chosen: Way, micro: int, optimizer: str
    ) -> tuple[Alternative, ...]:
        found: list[Alternative] = []
        least: int | None = None
        ways = [
            way
            for way in self._request.ways(micro)
            if way.update_in_backward == chosen.update_in_backward
            or way.strategy == chosen.strategy
        ]
        if chosen not in ways:  # a strategy for each run
            ways = sorted([*ways, chosen], key=lambda way: way.time_factor)
        for way in ways:  # the fastest first
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
        others = math.prod(len(each.values) for each in self._dimensions[1:])
        return len(self._rungs) * others * ways * len(self._request.optimizers())

    def _above(self, rung: Rung) -> Iterator[tuple[Rung, Dimension]]:
        """Yield the next rung along each dimension."""
        for dimension in self._dimensions:
            values = dimension.values
            if (
                dimension is self._dimensions[0]
            ):  # without what cannot exist, in the order of the search
                values = tuple(each.value(dimension.name) for each in self._rungs)
            place = values.index(rung.value(dimension.name))
            if place + 1 < len(values):
                yield rung.changed(dimension.name, values[place + 1]), dimension

    def _neighbors(self, rung: Rung, way: Way, micro: int, optimizer: str) -> tuple[Rejected, ...]:
        """What differs from the choice in one thing: why not that."""
        found = list[Rejected | None]()
        own_bytes = self._peak(rung, micro, optimizer, way)
        assert own_bytes is not None
        for other in self._request.ways(micro):
            same = (
                (other.strategy == way.strategy)
                + (other.slab_bytes == way.slab_bytes)
                + (other.span_count == way.span_count)
                + (other.update_in_backward == way.update_in_backward)
            )
            if same == 3:
                setting = self._setting(rung, micro, optimizer, other)
                rejected = self._reject(setting, _against(other, way))
                # What is slower and takes as much is no choice that anybody could want.
                if rejected.predicted_peak_bytes < own_bytes or other.time_factor < way.time_factor:
                    found.append(rejected)
        for above, dimension in self._above(rung):
            found.append(self._nearest(above, micro, optimizer, f"more {dimension.goal}"))
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
        micro, best = setting.micro_batch_size, Way.of(setting)
        names = [w.strategy for w in self._sparing(micro) if w.slab_bytes == best.slab_bytes]
        rejected = [
            self._reject(replace(setting, strategy=name), "the least that was asked for")
            for name in dict.fromkeys(names)
        ]
        missing = floor - request.budget_bytes
        parts = self._prediction(setting).parts
        bare = parts.get("base_bytes", 0) + parts.get("supervisor_bytes", 0)
        return SearchResult(
            plan=None,
            floor_bytes=floor,
            floor_setting=setting,
            rejected=tuple(rejected),
            way_out=" ".join(ways_out(request, setting, floor, self._bytes, bare)),
            tried=len(self._known),
            space=self._space(),
            reason=(
                f"--budget {format_bytes(request.budget_bytes)} is too small for {setting.model} "
                f"with T={setting.timesteps}: it takes at least {format_bytes(floor)} "
                f"({best.text()}, micro-batch {micro}), {format_bytes(missing)} more"
            ),
        )


def _against(other: Way, chosen: Way) -> str:
    factor = other.time_factor / chosen.time_factor
    if abs(factor - 1) < 0.005:
        return "as fast"
    return "faster" if factor < 1 else f"slower (about {factor:.2f} times the step)"
