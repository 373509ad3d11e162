"""What to change where nothing fits: a larger budget, and up to three other things, each tried. Free of torch."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from revedge.errors import UsageError
from revedge.planner.ladder import MOST_BLOCKS
from revedge.planner.precision import PRECISIONS
from revedge.planner.request import Request
from revedge.planner.setting import Setting
from revedge.units import format_bytes

# Widths that are offered.
_WIDTHS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_MOST = 3  # beside a larger budget
_MOST_PASSED = 8  # values that cannot exist, which are passed over below the largest that could
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
    families: Mapping[str, Sequence[str]],
) -> list[str]:
    """Return what to change, as words with the options of `revedge plan`; each makes the request feasible.

    Args:
        request: for which nothing fits.
        floor: the configuration of it that takes the least.
        floor_bytes: its predicted peak.
        peak: predicts a setting; raises UsageError for one that cannot exist.
        bare_bytes: what torch takes without a network.
        families: models of each family.
    """
    found = [f"give --budget {-(-floor_bytes // 2**20)}MiB or more"]
    if bare_bytes >= request.budget_bytes:
        return [*found, f"(no smaller network helps: torch alone takes {format_bytes(bare_bytes)})"]

    def least(setting: Setting) -> int | None:
        """The peak of ``setting``, in spans of time only where it takes fewer bytes so; None if it cannot exist."""
        known = list[int]()
        spanless = replace(setting, span_count=None, membrane_count=None)
        for each in [setting] if request.span_count or spanless == setting else [setting, spanless]:
            with contextlib.suppress(UsageError):
                known.append(peak(each))
        return min(known, default=None)

    def fits(setting: Setting) -> bool:
        known = least(setting)
        return known is not None and known <= request.budget_bytes

    offers = [*islice(_offers(request, floor, least, fits, families), _MOST)]
    return [*found, *(offers or ["or take a smaller model or smaller frames"])]


def _offers(
    request: Request,
    floor: Setting,
    least: Callable[[Setting], int | None],
    fits: Callable[[Setting], bool],
    families: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """Yield what helps, beginning with what changes the training least; nothing is tried before it is asked for."""
    for name, text in _FIXED.items():
        if _helps(request, floor, name, fits):
            yield f"or leave out {text}"
    if floor.precision != PRECISIONS[0] and fits(replace(floor, precision=PRECISIONS[0])):
        yield f"or --precision {PRECISIONS[0]}"
    if floor.optimizer != "sgd" and fits(replace(floor, optimizer="sgd")):
        instead = "" if request.optimizer is None else f" instead of --optimizer {floor.optimizer}"
        yield f"or --optimizer sgd{instead}"
    if not request.runs:  # which say model, time steps and options
        yield from _smaller(request, floor, least, families)
    for size in _halves(request.full_batch_size):
        if any(map(fits, _with_batch(request, floor, size))):
            yield f"or --batch {size}"
            break


def _smaller(
    request: Request,
    floor: Setting,
    least: Callable[[Setting], int | None],
    families: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """Yield fewer time steps, less depth, less width, another member of the family: the most of each that fits.

    Depth and width of a net that were not given need not be known: memory rises with them, so what fits is less.
    """

    def with_option(name: str, value: int) -> Setting:
        if name == "timesteps":
            return replace(floor, timesteps=value)
        return replace(floor, model_options={**floor.model_options, name: value})

    def peak_with(name: str, value: int) -> int | None:
        return least(with_option(name, value))

    choices: tuple[tuple[str, Sequence[int]], ...] = (
        ("timesteps", range(1, floor.timesteps)),
        ("depth", range(1, floor.model_options.get("depth", MOST_BLOCKS + 1))),
        ("width", [n for n in _WIDTHS if n < floor.model_options.get("width", _WIDTHS[-1] + 1)]),
    )
    for name, values in choices:
        peak = functools.partial(peak_with, name)
        place = _last(values, peak, request.budget_bytes)
        if place is not None:
            yield f"or --{name} {values[place]}"
    wanted = request.model or request.defaults.model
    if wanted in families:  # all of whose members have been tried
        return
    peaks = {
        member: least(replace(floor, model=member))
        for members in families.values()
        if wanted in members
        for member in members
    }
    small = {name: n for name, n in peaks.items() if n is not None and n <= request.budget_bytes}
    if small:
        yield f"or --model {max(small, key=small.__getitem__)}"


def _last(
    values: Sequence[int], peak: Callable[[int], int | None], budget_bytes: int
) -> int | None:
    """Return the place of the last that fits; memory rises along them, and some cannot exist."""
    low, high, exist = -1, len(values), False
    while high - low > 1:
        middle = (low + high) // 2
        known = peak(values[middle])
        exist = exist or known is not None
        if known is not None and known > budget_bytes:
            high = middle
        else:  # it fits, or is too small to exist
            low = middle
    for place in range(low, max(-1, low - _MOST_PASSED), -1) if exist else ():
        known = peak(values[place])
        if known is not None:
            return place if known <= budget_bytes else None
    return None


def _halves(batch_size: int) -> Iterator[int]:
    """Yield smaller batches, the largest first."""
    while batch_size > 1:
        batch_size //= 2
        yield batch_size


def _with_batch(request: Request, floor: Setting, size: int) -> Iterator[Setting]:
    """Yield ``floor`` with another batch, in its largest and its smallest pieces; none where it cannot be cut so."""
    try:
        asked = replace(request, batch_size=size)
    except UsageError:
        return
    sizes = asked.micro_batches()
    for micro in {sizes[0], sizes[-1]}:
        for update in {way.update_in_backward for way in asked.ways(micro)}:
            yield replace(floor, batch_size=size, micro_batch_size=micro, update_in_backward=update)


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
        fits(replace(floor, micro_batch_size=size, **asdict(way)))
        for size in {sizes[0], sizes[-1]}
        for way in freed.ways(size)
    )
