"""What a search says beside its plan: the alternatives, the neighbors, and why nothing fits. Free of torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from revedge.planner.ladder import Dimension, Rung
from revedge.planner.mixed import least
from revedge.planner.result import Alternative, Rejected, SearchResult
from revedge.planner.setting import Setting
from revedge.planner.tried import Tried
from revedge.planner.way import Way
from revedge.planner.way_out import ways_out
from revedge.units import format_bytes


def alternatives(
    tried: Tried, rung: Rung, chosen: Way, micro: int, optimizer: str
) -> tuple[Alternative, ...]:
    """Return every way at the chosen network, the fastest first."""
    found: list[Alternative] = []
    least: int | None = None
    ways = [
        way
        for way in tried.request.ways(micro)
        if way.update_in_backward == chosen.update_in_backward or way.strategy == chosen.strategy
    ]
    if chosen not in ways:  # a strategy for each run
        ways = sorted([*ways, chosen], key=lambda way: way.time_factor)
    for way in ways:  # the fastest first
        setting = tried.setting(rung, micro, optimizer, way)
        peak = tried.bytes_of(setting)
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


def _above(
    rung: Rung, rungs: Sequence[Rung], dimensions: Sequence[Dimension]
) -> Iterator[tuple[Rung, Dimension]]:
    """Yield the next rung along each dimension."""
    for dimension in dimensions:
        values = dimension.values
        if dimension is dimensions[0]:  # without what cannot exist, in the order of the search
            values = tuple(each.value(dimension.name) for each in rungs)
        place = values.index(rung.value(dimension.name))
        if place + 1 < len(values):
            yield rung.changed(dimension.name, values[place + 1]), dimension


def neighbors(
    tried: Tried,
    rungs: Sequence[Rung],
    dimensions: Sequence[Dimension],
    chosen: tuple[Rung, Way, int, str],
) -> tuple[Rejected, ...]:
    """Return what differs from the choice in one thing, and why not that.

    Args:
        tried: what was predicted.
        rungs: of the first dimension, those that can exist.
        dimensions: of the search.
        chosen: rung, way, micro-batch and optimizer.
    """
    rung, way, micro, optimizer = chosen
    found = list[Rejected | None]()
    own_bytes = tried.bytes_of(tried.setting(rung, micro, optimizer, way))
    for other in tried.request.ways(micro):
        same = (
            (other.strategy == way.strategy)
            + (other.slab_bytes == way.slab_bytes)
            + (other.span_count == way.span_count)
            + (other.update_in_backward == way.update_in_backward)
        )
        if same == 3:
            setting = tried.setting(rung, micro, optimizer, other)
            rejected = _reject(tried, setting, _against(other, way))
            # What is slower and takes as much is no choice that anybody could want.
            if rejected.predicted_peak_bytes < own_bytes or other.time_factor < way.time_factor:
                found.append(rejected)
    for above, dimension in _above(rung, rungs, dimensions):
        found.append(_nearest(tried, above, micro, optimizer, f"more {dimension.goal}"))
    preferred = tried.request.optimizers()[0]
    if optimizer != preferred:
        found.append(_nearest(tried, rung, micro, preferred, f"{preferred}, which is preferred"))
    sizes = tried.request.micro_batches()
    if micro != sizes[0]:
        larger = sizes[sizes.index(micro) - 1]
        found.append(_nearest(tried, rung, larger, optimizer, "a larger micro-batch"))
    return tuple(each for each in found if each is not None)


def _nearest(tried: Tried, rung: Rung, micro: int, optimizer: str, what: str) -> Rejected | None:
    """The way that takes the least memory at another rung, optimizer or micro-batch."""
    peaks = {w: tried.peak(rung, micro, optimizer, w) for w in tried.sparing(micro)}
    if None not in peaks.values():
        mixtures = least(tried, rung, micro, optimizer)
        peaks |= {w: tried.peak(rung, micro, optimizer, w) for w in mixtures}
    known = {w: peak for w, peak in peaks.items() if peak is not None}
    if not known:
        return None
    way = min(known, key=known.__getitem__)
    return _reject(tried, tried.setting(rung, micro, optimizer, way), what)


def _reject(tried: Tried, setting: Setting, what: str) -> Rejected:
    peak = tried.bytes_of(setting)
    missing = max(0, peak - tried.request.budget_bytes)
    reason = f"{what}, but {format_bytes(missing)} over the budget" if missing else what
    return Rejected(
        setting=setting, predicted_peak_bytes=peak, missing_bytes=missing, reason=reason
    )


def nothing_fits(
    tried: Tried,
    floor: int,
    setting: Setting,
    space: int,
    families: Mapping[str, Sequence[str]],
) -> SearchResult:
    """Return the floor, ``setting`` which takes it, its neighbors, and what to change.

    Args:
        tried: what was predicted.
        floor: bytes that the request takes at least.
        setting: that takes them.
        space: configurations of the request.
        families: models of each family.
    """
    request = tried.request
    micro, best = setting.micro_batch_size, Way.of(setting)
    names = [way.strategy for way in tried.sparing(micro) if way.slab_bytes == best.slab_bytes]
    names += [best.strategy]
    rejected = [
        _reject(tried, replace(setting, strategy=name), "the least that was asked for")
        for name in dict.fromkeys(names)
    ]
    missing = floor - request.budget_bytes
    parts = tried.prediction(setting).parts
    bare = parts.get("base_bytes", 0) + parts.get("supervisor_bytes", 0)
    return SearchResult(
        plan=None,
        floor_bytes=floor,
        floor_setting=setting,
        rejected=tuple(rejected),
        way_out=" ".join(ways_out(request, setting, floor, tried.bytes_of, bare, families)),
        tried=len(tried),
        space=space,
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
