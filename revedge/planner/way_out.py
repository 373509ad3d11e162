"""What to change where nothing fits: a larger budget, and up to three other things, each tried. Free of torch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from revedge.errors import UsageError
from revedge.planner.precision import PRECISIONS
from revedge.planner.request import Request
from revedge.planner.setting import Setting
from revedge.planner.way import Way
from revedge.units import format_bytes

_NARROW = (4, 8, 12, 16, 24, 32, 48, 64)  # widths that are offered
_MOST = 3  # beside a larger budget
# What a user can fix, and give up again.
_FIXED = {
    "strategy": "--strategy",
    "micro_batch_size": "--micro-batch",
    "slab_bytes": "--slab",
    "span_count": "--spans",
    "chunk_bytes": "--chunk",
    "update_in_backward": "--update-in-backward",
}


def ways_out(
    request: Request,
    floor: Setting,
    floor_bytes: int,
    peak: Callable[[Setting], int],
    bare_bytes: int,
) -> list[str]:
    """Return what to change, as words with the options of `revedge plan`; each makes the request feasible.

    Args:
        request: for which nothing fits.
        floor: the configuration of it that takes the least.
        floor_bytes: its predicted peak.
        peak: predicts a setting; raises UsageError for one that cannot exist.
        bare_bytes: what torch takes without a network.
    """
    budget = request.budget_bytes
    found = [f"give --budget {-(-floor_bytes // 2**20)}MiB or more"]
    if bare_bytes >= budget:
        return [*found, f"(no smaller network helps: torch alone takes {format_bytes(bare_bytes)})"]

    def fits(setting: Setting) -> bool:
        try:
            return peak(setting) <= budget
        except UsageError:
            return False

    def with_option(name: str, value: int) -> Setting:
        if name == "timesteps":
            return replace(floor, timesteps=value)
        return replace(floor, model_options={**floor.model_options, name: value})

    widths = [n for n in _NARROW if n < floor.model_options.get("width", _NARROW[-1] + 1)]
    choices: tuple[tuple[str, Sequence[int]], ...] = (
        ("timesteps", range(1, floor.timesteps)),
        ("width", widths),
        ("depth", range(1, floor.model_options.get("depth", 1))),
    )
    for name, values in choices:
        place = _last([with_option(name, value) for value in values], fits)
        if place is not None:
            found.append(f"or --{name} {values[place]}")
    if (
        request.optimizer is None
        and floor.optimizer != "sgd"
        and fits(replace(floor, optimizer="sgd"))
    ):
        found.append("or --optimizer sgd")
    if floor.precision != PRECISIONS[0] and fits(replace(floor, precision=PRECISIONS[0])):
        found.append(f"or --precision {PRECISIONS[0]}")
    found += [
        f"or leave out {text}"
        for name, text in _FIXED.items()
        if _helps(request, floor, name, fits)
    ]
    if len(found) == 1:
        found.append("or take a smaller model or smaller frames")
    return found[: 1 + _MOST]


def _last(settings: Sequence[Setting], fits: Callable[[Setting], bool]) -> int | None:
    """Return the place of the last that fits; memory rises along them."""
    low, high = -1, len(settings)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(settings[middle]) else (low, middle)
    return low if low >= 0 else None


def _helps(request: Request, floor: Setting, name: str, fits: Callable[[Setting], bool]) -> bool:
    """Whether anything fits if the user gives up what was fixed."""
    if getattr(request, name) is None:
        return False
    changes: dict[str, Any] = {name: None}
    if name == "span_count":
        changes["membrane_count"] = None  # which are those of spans
    freed = replace(request, **changes)
    sizes = freed.micro_batches()
    return any(
        fits(_with_way(replace(floor, micro_batch_size=size), way))
        for size in {sizes[0], sizes[-1]}
        for way in freed.ways(size)
    )


def _with_way(setting: Setting, way: Way) -> Setting:
    return replace(
        setting,
        strategy=way.strategy,
        slab_bytes=way.slab_bytes,
        span_count=way.span_count,
        membrane_count=way.membrane_count,
        chunk_bytes=way.chunk_bytes,
        update_in_backward=way.update_in_backward,
    )
