"""Settings of runs: what is kept for the backward pass, and in what sizes things are computed."""

from abc import abstractmethod
from collections.abc import Sequence

from revedge.engine.strategy import check_strategy
from revedge.errors import UsageError

CHECKS = ("none", "checksum")


class TakesSizes:
    """What has the setters of sizes, and so can take all of them at once."""

    @abstractmethod
    def set_slab_bytes(self, slab_bytes: int | None) -> None:
        """Set the size of slabs."""

    @abstractmethod
    def set_span_count(self, span_count: int | None, *, membranes: int | None = None) -> None:
        """Set the number of spans of time, and of membranes that stand between them."""

    @abstractmethod
    def set_chunk_bytes(self, chunk_bytes: int | None) -> None:
        """Set the size of chunks."""

    def take_sizes(self, other: object) -> None:
        """Take slabs, spans, membranes and chunks of ``other``: settings, or a plan; what it has none of is None.

        Raises:
            UsageError: one of them is out of its range.
        """
        self.set_slab_bytes(getattr(other, "slab_bytes", None))
        membranes = getattr(other, "membrane_count", None)
        self.set_span_count(getattr(other, "span_count", None), membranes=membranes)
        self.set_chunk_bytes(getattr(other, "chunk_bytes", None))


class StrategySettings(TakesSizes):
    """What a `Run` can be told; by itself, settings for runs to come.

    Attributes:
        strategy: what is kept between forward and backward, see `revedge.engine.strategy`.
        check: "checksum" compares a 64-bit sum of every rebuilt block input with that of the forward pass.
        slab_bytes: size of the slabs of channels that tensors between units are computed in; None: whole.
        span_count: how many spans of time at most a block's backward pass is cut into; None: one.
        membrane_count: how many membranes of a neuron at most stand at a time in such a pass; None: one per span.
        chunk_bytes: of spikes that an operator reads at once; None: `revedge.engine.signal.CHUNK_BYTES`.

    Raises:
        UsageError: ``strategy`` or ``check`` is not known.
    """

    slab_bytes: int | None = None
    span_count: int | None = None
    membrane_count: int | None = None
    chunk_bytes: int | None = None

    def __init__(self, strategy: str = "reverse", check: str = "none") -> None:
        self.set_strategy(strategy, check=check)

    def set_strategy(self, strategy: str, *, check: str | None = None) -> None:
        """Choose what the run keeps; the gradient stays the same to the last bit.

        Raises:
            UsageError: ``strategy`` or ``check`` is not known.
        """
        self.strategy = check_strategy(strategy)
        if check is not None:
            if check not in CHECKS:
                raise UsageError(f"check {check!r} is not known; choose one of {', '.join(CHECKS)}")
            self.check = check

    def set_slab_bytes(self, slab_bytes: int | None) -> None:
        """Compute the tensors between units in slabs of channels of about so many bytes; None: whole.

        Raises:
            UsageError: less than 1.
        """
        if slab_bytes is not None and slab_bytes < 1:
            raise UsageError(f"slab_bytes={slab_bytes} is not a size; use 1 byte or more, or None")
        self.slab_bytes = slab_bytes

    def set_span_count(self, span_count: int | None, *, membranes: int | None = None) -> None:
        """Go back through residual and coupling blocks in so many spans of time (`revedge.engine.span_replay`).

        Fewer, where chunks of a convolution are longer than such a span (`set_chunk_bytes`). None: over all time at
        once, as runs without an identity path always do.

        Args:
            span_count: how many spans at most.
            membranes: how many membranes of a neuron at most stand at a time, the others are made again
                (`revedge.engine.few_membranes`): less memory, more time. None: one per span is kept.

        Raises:
            UsageError: less than 1; membranes without spans.
        """
        if span_count is not None and span_count < 1:
            raise UsageError(
                f"span_count={span_count} is no number of spans; use 1 or more, or None"
            )
        if membranes is not None and span_count is None:
            raise UsageError(
                f"membranes={membranes} are those of spans of time; give span_count, too"
            )
        if membranes is not None and membranes < 1:
            raise UsageError(f"membranes={membranes} are too few to go on from; use 1 or more")
        self.span_count, self.membrane_count = span_count, membranes

    def set_chunk_bytes(self, chunk_bytes: int | None) -> None:
        """Let operators read about so many bytes of spikes at once, as float32; None: 2 MiB.

        Smaller chunks take less memory, and spans of time may be as short as they are. Results may change in the last
        bit, under all strategies alike.

        Raises:
            UsageError: less than 1.
        """
        if chunk_bytes is not None and chunk_bytes < 1:
            raise UsageError(
                f"chunk_bytes={chunk_bytes} is not a size; use 1 byte or more, or None"
            )
        self.chunk_bytes = chunk_bytes


class SetsRuns(TakesSizes):
    """The setters of a `Run` for all runs of a model at once."""

    @abstractmethod
    def strategy_settings(self) -> Sequence[StrategySettings]:
        """Return what is set: the runs, and what stands for runs to come."""

    def set_slab_bytes(self, slab_bytes: int | None) -> None:
        """Compute the tensors between units in slabs of channels of about so many bytes; None: whole.

        Memory: what stands beside the kept tensors shrinks from two or three tensors of the widest unit to one or two.
        Time: none to 15 %, where slabs have fewer than 64 channels. Gradients agree with those of other sizes to
        rounding, and under one size to the last bit for all strategies.

        Raises:
            UsageError: less than 1.
        """
        for each in self.strategy_settings():
            each.set_slab_bytes(slab_bytes)

    def set_span_count(self, span_count: int | None, *, membranes: int | None = None) -> None:
        """Go back through residual and coupling blocks in so many spans of time; None: over all time at once.

        Memory: the gradient of a block's branch stands for a span only, not for all T; ``membranes`` says how many
        steps of membranes of a neuron stand at most, None one per span. Gradients are the same bits.
        Time: about 1.5 times that of a step, with two membranes about 2 times (`revedge.engine.few_membranes`).

        Raises:
            UsageError: less than 1; membranes without spans.
        """
        for each in self.strategy_settings():
            each.set_span_count(span_count, membranes=membranes)

    def set_chunk_bytes(self, chunk_bytes: int | None) -> None:
        """Let operators read about so many bytes of spikes at once, as float32; None: 2 MiB.

        Memory: two or three chunks stand beside all else, and spans of time may be as short as a chunk is.
        Gradients agree with those of other sizes to rounding, and under one size to the last bit for all strategies.

        Raises:
            UsageError: less than 1.
        """
        for each in self.strategy_settings():
            each.set_chunk_bytes(chunk_bytes)

    def set_check(self, check: str) -> None:
        """Compare rebuilt block inputs with those of the forward pass ("checksum"), or do not ("none").

        Raises:
            UsageError: neither of the two.
        """
        for each in self.strategy_settings():
            each.set_strategy(each.strategy, check=check)


def one_per_run(strategy: str | Sequence[str], run_count: int) -> list[str]:
    """Return a strategy for each run, of one name or of a list of them.

    Raises:
        UsageError: an unknown name, or a list of another length than there are runs.
    """
    names = [strategy] * run_count if isinstance(strategy, str) else list(strategy)
    if len(names) != run_count:
        raise UsageError(
            f"{len(names)} strategies were given for {run_count} runs; give one name, or one per run"
        )
    return [check_strategy(name) for name in names]
