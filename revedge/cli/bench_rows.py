"""What `revedge bench` measures: cases, strategies, rows; which rows are smallest, fastest, on the front."""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from revedge.cli.step_child import PLAIN, spawn
from revedge.errors import RevedgeError, UsageError
from revedge.planner.way import SPAN_STRATEGIES
from revedge.units import format_clock, parse_bytes

Row = dict[str, Any]

# The nets that other libraries are measured on too; 32x32 images, LIF with tau 2, ATan surrogate, reset detached.
NAMED: dict[str, dict[str, Any]] = {
    "iso": {"name": "vgg-iso10", "neuron": "lif"},
    "vgg11": {"name": "vgg11", "neuron": "lif"},
    "ms_resnet18": {"name": "ms-resnet18", "neuron": "lif"},
}
STRATEGIES = ("store", "keep-conv", "keep-spikes", "reverse")
_KNOWN = (*STRATEGIES, "invert", PLAIN)
SLABS = "+slabs"
SPELLING = f"{SLABS}=1MiB, +spans=16, +membranes=2 (of spans) or +chunks=1MiB"
# What may follow a strategy, as in "reverse+slabs=1MiB+spans=16+membranes=2": the option, and how its value is read.
_OPTIONS = {
    "slabs": ("slab_bytes", True),
    "spans": ("span_count", False),
    "membranes": ("membrane_count", False),
    "chunks": ("chunk_bytes", True),
}
# With "all+slabs", "smallest", "fastest": the planner's sizes but for 32 MiB, which few of these nets' tensors reach,
# under the strategies that do not keep the tensors that slabs avoid.
_SLAB_SIZES = ("2MiB", "8MiB")
_SLAB_STRATEGIES = ("keep-spikes", "reverse")
BEST = ("smallest", "fastest")
# What those two choose among, as help says it. Spans, few membranes and chunks take 1.2 to 2.6 times the time
# (benchmarks/depth_time_*.md, peers_*.md) for few bytes: nobody gets them without asking.
CHOICE = f"the strategies whole, and {' and '.join(_SLAB_STRATEGIES)} with slabs of {' or '.join(_SLAB_SIZES)}"
UNTRIED = (
    "spans, few membranes and chunks are measured when named, as in reverse+spans=8+membranes=2"
)
# What the meter cannot tell apart; among such rows the other figure decides.
_SAME_BYTES, _SAME_TIME = 1.01, 1.03


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One net with one T and one batch, as a job for `revedge.cli.step_child` without its strategy."""

    net: str
    timesteps: int
    batch: int
    job: dict[str, Any]

    def labels(self) -> Row:
        """Return what tells its rows from those of other cases."""
        return {
            "net": self.net,
            "timesteps": self.timesteps,
            "batch": self.batch,
            "update_in_backward": bool(self.job.get("update_in_backward")),
        }


def strategies_of(text: str, *, reversible: bool) -> list[str]:
    """Return the strategies to measure for ``--strategy``; for "smallest" and "fastest" those of `CHOICE`.

    Raises:
        UsageError: an unknown name.
    """
    every: list[str] = [*STRATEGIES, "invert"] if reversible else [*STRATEGIES]
    if text == "all":
        return every
    if text in (f"all{SLABS}", *BEST):
        slabs = (f"{name}{SLABS}={size}" for size in _SLAB_SIZES for name in _SLAB_STRATEGIES)
        return [*every, *slabs]
    words = [word.strip() for word in text.split(",")]
    for word in words:
        strategy_options(word)
    return list(dict.fromkeys(words))


def strategy_options(word: str) -> Row:
    """Return strategy and options of a step of "reverse" or "reverse+slabs=1MiB+spans=8"; None where none is told.

    Raises:
        UsageError: an unknown name, size or number; an option that changes nothing under this strategy.
    """
    name, *parts = word.split("+")
    found: Row = {"strategy": name, **dict.fromkeys(option for option, _ in _OPTIONS.values())}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in _OPTIONS or not equals:
            name = ""
            break
        option, is_size = _OPTIONS[key]
        if not is_size and not (value.isdecimal() and int(value)):
            raise UsageError(
                f"--strategy {word!r}: {value!r} is no number of {key}; give 1 or more"
            )
        found[option] = parse_bytes(value) if is_size else int(value)
    if name not in _KNOWN:
        raise UsageError(
            f"--strategy {word!r} is not known; choose among {', '.join(_KNOWN)}, maybe with {SPELLING}, "
            f"or one of smallest, fastest, all, all{SLABS}"
        )
    if name == PLAIN and parts:
        raise UsageError(
            f"--strategy {word!r}: {PLAIN} goes without the engine; leave +{parts[0]} out"
        )
    if (found["span_count"] or 1) > 1 and name not in SPAN_STRATEGIES:
        raise UsageError(
            f"--strategy {word!r}: {name} keeps what spans would make again; use {' or '.join(SPAN_STRATEGIES)}"
        )
    if found["membrane_count"] is not None and found["span_count"] is None:
        raise UsageError(f"--strategy {word!r}: membranes are those of spans; add +spans=16")
    return found


def measure(
    cases: Sequence[Case],
    strategies: Sequence[str],
    *,
    rounds: int = 1,
    started: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> tuple[list[Row], list[Row]]:
    """Measure each case under each strategy, ``rounds`` times in turn, each time in a fresh process.

    Args:
        cases: what to measure.
        strategies: under what.
        rounds: processes per row; see `merge`.
        started: told how many are done, of how many, and what begins.

    Returns:
        Rows, and failures (labels, strategy, error) of what could not be run.

    Raises:
        UsageError: a net or an option is not possible at all.
    """
    pairs = [(case, strategy) for case in cases for strategy in strategies]
    found: list[list[Row]] = [[] for _ in pairs]
    failed: dict[int, Row] = {}
    for turn in range(rounds):
        for index, (case, strategy) in enumerate(pairs):
            if index in failed:
                continue
            what = f"{case.net} T={case.timesteps} batch {case.batch} {strategy}"
            started(turn * len(pairs) + index, rounds * len(pairs), what)
            row = {**spawn({**case.job, **strategy_options(strategy)}), "strategy": strategy}
            if "error" in row:
                failed[index] = {**case.labels(), "strategy": strategy, "error": row["error"]}
            found[index].append({**case.labels(), **row})
    rows = [merge(each) for index, each in enumerate(found) if index not in failed]
    mark_front(rows)
    return rows, list(failed.values())


def merge(rows: Sequence[Row]) -> Row:
    """Return one row of several of the same: the least CPU seconds, the median of the bytes.

    Raises:
        RevedgeError: the loss or the gradient was not the same in all.
    """
    first = rows[0]
    for key in ("loss", "gradient_sha1"):
        if len({row.get(key) for row in rows}) > 1:
            raise RevedgeError(
                f"{first['net']} with strategy {first['strategy']} gave another {key} in another process; "
                "this is an error of revedge, please report"
            )
    medians = {
        key: int(statistics.median(row[key] for row in rows))
        for key in first
        if key.endswith("_bytes")
    }
    return {**first, **medians, "cpu_s": min(row["cpu_s"] for row in rows)}


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows that may be compared: those of one net, T and batch."""
    found: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["net"], row["timesteps"], row["batch"]), []).append(row)
    return list(found.values())


def best(rows: Sequence[Row], wanted: str) -> Row:
    """Return the "smallest" or the "fastest" row.

    Rows within 1 % of the least bytes, or 3 % of the least time, count as equal: the other figure decides there.
    """
    main, other, same = (
        ("anon_peak_bytes", "cpu_s", _SAME_BYTES)
        if wanted == "smallest"
        else ("cpu_s", "anon_peak_bytes", _SAME_TIME)
    )
    limit = same * min(row[main] for row in rows)
    return min((row for row in rows if row[main] <= limit), key=lambda row: (row[other], row[main]))


def mark_front(rows: Sequence[Row]) -> None:
    """Set ``pareto`` of each row: no other row of its group is as good in both bytes and time, and better in one."""
    for group in groups(rows):
        for row in group:
            here = (row["anon_peak_bytes"], row["cpu_s"])
            row["pareto"] = not any(
                there != here and there[0] <= here[0] and there[1] <= here[1]
                for there in ((one["anon_peak_bytes"], one["cpu_s"]) for one in group)
            )


class Progress:
    """One changing line on a terminal: how far, what runs now, how long it will take. Silent elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self._began_s = time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Redraw the line."""
        if not self.live:
            return
        spent_s = time.monotonic() - self._began_s
        left = f", {format_clock(spent_s / done * (total - done))} left" if done else ""
        self.stream.write(f"\r\033[K[{done + 1}/{total}] {what}  ({format_clock(spent_s)}{left})")
        self.stream.flush()

    def close(self) -> None:
        """Leave the terminal on a fresh line."""
        if self.live:
            self.stream.write("\r\033[K")
            self.stream.flush()
