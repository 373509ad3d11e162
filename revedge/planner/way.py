"""Ways to save memory, in the order of the time that a step takes with them.

A way is what changes the bytes of a training and none of its results (slabs and chunks: in the last bit): memory
strategy, slabs of channels, spans of time, chunks of operators, update in backward. The optimizer and the micro-batch
do change results, so they are wishes of their own.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from revedge.binomial import steps_back
from revedge.planner.setting import Setting
from revedge.units import format_bytes

# Time of a training step in sizes of that of `store` without slabs: what is computed again in the backward pass, and
# convolutions that are called for few channels at a time. Only the order matters to the search.
TIME_FACTORS: Mapping[str, float] = {
    "store": 1.0,
    "keep-conv": 1.1,
    "invert": 1.2,
    "keep-spikes": 1.35,
    "reverse": 1.4,
}
SLAB_TIME_FACTORS: Mapping[int | None, float] = {
    None: 1.0,
    32 << 20: 1.01,
    8 << 20: 1.06,
    2 << 20: 1.5,
}
# Spans of time, for strategies that make blocks' gradients again. Of m spans each holds 3/m of a tensor, and membranes
# before spans take about m/T of one: eight take 0.1, 0.1, 0.2 more than the best number at T = 16, 64, 256.
SPANS: Sequence[int | None] = (None, 8)
SPAN_STRATEGIES = ("keep-spikes", "reverse")
_UPDATE_TIME_FACTOR = 1.001  # one call per parameter instead of two for all


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a training saves memory; fields are those of `revedge.planner.plan.Plan`."""

    strategy: str | tuple[str, ...]
    slab_bytes: int | None = None
    span_count: int | None = None
    membrane_count: int | None = None
    chunk_bytes: int | None = None
    update_in_backward: bool = False

    @classmethod
    def of(cls, setting: Setting) -> "Way":
        """Return the way of ``setting``."""
        return cls(**{each.name: getattr(setting, each.name) for each in dataclasses.fields(cls)})

    def text(self) -> str:
        """Return it as people read it."""
        strategy = self.strategy if isinstance(self.strategy, str) else "+".join(self.strategy)
        slabs = "" if self.slab_bytes is None else f" slabs {format_bytes(self.slab_bytes)}"
        spans = "" if self.span_count is None else f" in {self.span_count} spans"
        if self.membrane_count is not None:
            spans += f" with {self.membrane_count} membranes"
        chunks = "" if self.chunk_bytes is None else f" chunks {format_bytes(self.chunk_bytes)}"
        return f"{strategy}{slabs}{spans}{chunks}" + (
            " update-in-backward" if self.update_in_backward else ""
        )

    @property
    def time_factor(self) -> float:
        """About how much longer a step takes than with `store` and nothing else."""
        names = [self.strategy] if isinstance(self.strategy, str) else self.strategy
        factor = sum(self._of_strategy(name) for name in names) / len(names)
        return (
            factor
            * _slab_factor(self.slab_bytes)
            * (_UPDATE_TIME_FACTOR if self.update_in_backward else 1.0)
        )

    def _of_strategy(self, name: str) -> float:
        if self.span_count is None or name not in SPAN_STRATEGIES:
            return TIME_FACTORS[name]
        return TIME_FACTORS[name] * _span_time_factor(self.span_count, self.membrane_count)


def ways(
    strategies: Sequence[str | tuple[str, ...]],
    slabs: Sequence[int | None],
    spans: Sequence[int | None],
    updates: Sequence[bool],
) -> list[Way]:
    """Return every combination, the fastest first; of several numbers of spans none where they change nothing, and
    not with slabs but the smallest: who cuts time wants the least.
    """
    sizes = [size for size in slabs if size is not None]
    least = (None, min(sizes)) if sizes else (None,)
    found = (
        Way(
            strategy=strategy,
            slab_bytes=slab_bytes,
            span_count=span_count,
            update_in_backward=update,
        )
        for strategy in strategies
        for slab_bytes in slabs
        for span_count in spans
        for update in updates
        if span_count is None
        or len(spans) == 1
        or (strategy in SPAN_STRATEGIES and slab_bytes in least)
    )
    return sorted(found, key=lambda way: way.time_factor)


def _span_time_factor(span_count: int, membrane_count: int | None) -> float:
    """Convolutions of a step of blocks of two in spans, in units of those without, which are 2 + 6.

    Measured a little less (benchmarks/bench_depth_time.py).
    """
    convolutions = 2.0 + 11.0
    if membrane_count is not None:  # in two sweeps: ways to the spans, and the spikes of each
        convolutions += 2.0 * (steps_back(span_count, membrane_count) / span_count + 1.0)
    return convolutions / 8.0


def _slab_factor(slab_bytes: int | None) -> float:
    """Time factor of the largest listed size that is not above ``slab_bytes``."""
    if slab_bytes is None:
        return 1.0
    fitting: Iterator[float] = (
        factor
        for size, factor in SLAB_TIME_FACTORS.items()
        if size is not None and size <= slab_bytes
    )
    return next(fitting, max(SLAB_TIME_FACTORS.values()))
