"""Chooses the training for a number of bytes, and says why not another one. Free of torch.

Order of wishes: the full batch in one piece (a smaller micro-batch changes batch norm, so it is the
last resort), then the preferred optimizer (with ``--optimizer any``), then the best rung of the ladder (what
``--prefer`` names, then what else is free), then the fastest way of saving memory that fits, for each run of the
network. With ``--prefer speed`` the way comes before the rung. Memory grows along a rising ladder, so the best rung is
bisected; every configuration that is accepted or called rejected was itself predicted, none is extrapolated.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from revedge.planner.ladder import Rung, build
from revedge.planner.mixed import least, mixed
from revedge.planner.request import Request
from revedge.planner.result import SearchResult
from revedge.planner.setting import Setting
from revedge.planner.tried import Predict, Progress, Tried
from revedge.planner.way import Way
from revedge.planner.why_not import alternatives, neighbors, nothing_fits


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
    return _Search(request, families, predict, progress).run()


class _Search:
    def __init__(
        self,
        request: Request,
        families: Mapping[str, list[str]],
        predict: Predict,
        progress: Progress,
    ) -> None:
        ladder, self._families = build(request, families), families
        self._request, self._tried = request, Tried(request, predict, progress)
        self._rising = ladder.rising
        self._rungs = self._possible(list(ladder.rungs))
        self._dimensions = ladder.dimensions

    def run(self) -> SearchResult:
        floor, floor_setting = self._floor()
        if floor > self._request.budget_bytes:
            return nothing_fits(self._tried, floor, floor_setting, self._space(), self._families)
        for micro in self._request.micro_batches():
            for optimizer in self._request.optimizers():
                found = self._best(micro, optimizer)
                if found is not None:
                    return self._found(*found, micro, optimizer, floor, floor_setting)
        raise AssertionError("the floor fits, so the smallest micro-batch does")

    def _found(
        self, rung: Rung, way: Way, micro: int, optimizer: str, floor: int, floor_setting: Setting
    ) -> SearchResult:
        way = mixed(self._tried, rung, way, micro, optimizer)
        setting = self._tried.setting(rung, micro, optimizer, way)
        return SearchResult(
            plan=self._request.plan(setting, self._tried.prediction(setting).parts),
            floor_bytes=floor,
            floor_setting=floor_setting,
            rejected=neighbors(
                self._tried, self._rungs, self._dimensions, (rung, way, micro, optimizer)
            ),
            alternatives=alternatives(self._tried, rung, way, micro, optimizer),
            tried=len(self._tried),
            space=self._space(),
            micro_batch_fixed=self._request.micro_batch_size is not None,
        )

    def _possible(self, rungs: list[Rung]) -> list[Rung]:
        """Rungs that can exist. On a rising ladder, those below the first that can are left out."""
        micro = self._request.micro_batches()[-1]
        optimizer, way = self._request.optimizers()[-1], self._request.ways(micro)[-1]
        if self._rising:
            while rungs and self._tried.peak(rungs[0], micro, optimizer, way) is None:
                rungs.pop(0)
                if len(self._tried.impossible) > 8:
                    raise self._tried.impossible[-1]
        else:
            peaks = [self._tried.peak(rung, micro, optimizer, way) for rung in rungs]
            found = [(rung, peak) for rung, peak in zip(rungs, peaks, strict=True) if peak]
            if self._request.prefer == "accuracy-per-byte":
                chance = 1 / self._request.num_classes
                found.sort(key=lambda each: ((each[0].accuracy or 0) - chance) / each[1])
            rungs = [rung for rung, _ in found]
        if not rungs:
            raise self._tried.impossible[-1]
        return rungs

    def _floor(self) -> tuple[int, Setting]:
        """The least peak. A whole batch can beat a micro-batch, which has to sum gradients."""
        settings = [
            self._tried.setting(rung, micro, optimizer, way)
            for rung in (self._rungs[:1] if self._rising else self._rungs)
            for micro in {self._request.micro_batches()[0], self._request.micro_batches()[-1]}
            for optimizer in self._request.optimizers()
            for way in (
                *self._tried.sparing(micro),
                *least(self._tried, rung, micro, optimizer),
            )
        ]
        best = min(settings, key=lambda each: self._tried.prediction(each).predicted_peak_bytes)
        return self._tried.prediction(best).predicted_peak_bytes, best

    def _best(self, micro: int, optimizer: str) -> tuple[Rung, Way] | None:
        """Return the best rung, and the fastest way that fits there.

        A strategy for each run is tried after one for all: it fits where none of them does only by a little.
        """
        ways = self._request.ways(micro)
        if self._request.prefer == "speed":
            for way in ways:
                rung = self._highest([way], micro, optimizer)
                if rung is not None:
                    return rung, way
            return self._best_mixture(micro, optimizer)
        # The slowest ways mostly reach highest; each of the others then costs one prediction to be ruled out.
        rung = self._highest(self._tried.sparing(micro)[::-1], micro, optimizer)
        if rung is None:
            return self._best_mixture(micro, optimizer)
        return rung, next(way for way in ways if self._tried.fits(rung, micro, optimizer, way))

    def _best_mixture(self, micro: int, optimizer: str) -> tuple[Rung, Way] | None:
        """Return the best rung, of rising ones the lowest, on which the least mixture fits."""
        for rung in self._rungs[:1] if self._rising else reversed(self._rungs):
            for way in least(self._tried, rung, micro, optimizer):
                if self._tried.fits(rung, micro, optimizer, way):
                    return rung, way
        return None

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
            best = next(
                (p for p in above if self._tried.fits(rungs[p], micro, optimizer, way)), best
            )
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
            peak = self._tried.peak(rungs[guess], micro, optimizer, way)
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

    def _space(self) -> int:
        sizes = self._request.micro_batches()
        ways = sum(len(self._request.ways(micro)) for micro in sizes)
        others = math.prod(len(each.values) for each in self._dimensions[1:])
        return len(self._rungs) * others * ways * len(self._request.optimizers())
