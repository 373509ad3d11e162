"""Live bytes while formulas follow a training step: what is there, what was there at most, and at which site."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from revedge.planner.workspace import Convolution, allocated_bytes

_NO_SITE = nullcontext()


class Block:
    """One piece of memory, as malloc takes it, and how many hold it."""

    __slots__ = ("holders", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.holders = 1


class Meter:
    """Counts live bytes. ``sites`` holds, in order, what was live at most during each named part of the step."""

    def __init__(self, page_bytes: int, threads: int, *, with_sites: bool = False) -> None:
        self._page_bytes, self._threads, self._with_sites = page_bytes, threads, with_sites
        self._sizes: dict[int, int] = {}
        self.live_bytes = self.peak_bytes = 0
        self.convolutions: set[Convolution] = set()  # those that oneDNN computes
        self.most_spans = 1  # of time that a block goes backward in
        self.sites: list[tuple[str, int]] = []
        self._names: list[str] = []

    def bytes_of(self, nbytes: int) -> int:
        """Return what malloc takes for a tensor of ``nbytes``."""
        size = self._sizes.get(nbytes)
        if size is None:
            size = self._sizes[nbytes] = allocated_bytes(nbytes, self._page_bytes)
        return size

    def new(self, nbytes: int) -> Block:
        """Count a tensor of ``nbytes``; who asks holds it."""
        block = Block(self.bytes_of(nbytes))
        self.live_bytes += block.size_bytes
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
        return block

    def floats(self, count: int) -> Block:
        """Count a tensor of so many float32 values."""
        return self.new(4 * count)

    def hold(self, block: Block) -> Block:
        """One more holds ``block``."""
        block.holders += 1
        return block

    def drop(self, *blocks: Block | None) -> None:
        """One less holds each; what nobody holds is gone."""
        for block in blocks:
            if block is not None:
                block.holders -= 1
                if not block.holders:
                    self.live_bytes -= block.size_bytes

    def note(self, *extra_bytes: int) -> None:
        """Tensors of these sizes stand beside what is live, for a moment."""
        total = self.live_bytes + sum(map(self.bytes_of, extra_bytes))
        if total > self.peak_bytes:
            self.peak_bytes = total

    def convolve(self, call: Convolution) -> None:
        """A convolution runs: operands and results are live, and its workspace."""
        if call.is_for_onednn(self._threads):
            self.convolutions.add(call)
        total = self.live_bytes + call.workspace_bytes(self._threads)
        if total > self.peak_bytes:
            self.peak_bytes = total

    def site(self, *name: object) -> AbstractContextManager[None]:
        """Name what happens inside; a part of another comes before it."""
        return self._site(" ".join(map(str, name))) if self._with_sites else _NO_SITE

    @contextmanager
    def highest(self, found: list[int]) -> Iterator[None]:
        """Append to ``found`` what is live at most inside."""
        before, self.peak_bytes = self.peak_bytes, self.live_bytes
        yield
        found.append(self.peak_bytes)
        self.peak_bytes = max(before, self.peak_bytes)

    @contextmanager
    def _site(self, name: str) -> Iterator[None]:
        self._names.append(name)
        found: list[int] = []
        with self.highest(found):
            yield
        self.sites.append((", ".join(self._names), found[0]))
        self._names.pop()

    def times(self, count: int, step: Callable[[], None]) -> None:
        """Take ``step`` so many times: each adds the same, so the most is that of the first or of the last."""
        if count < 1:
            return
        before, self.peak_bytes, live_bytes = self.peak_bytes, 0, self.live_bytes
        step()
        grown = (count - 1) * (self.live_bytes - live_bytes)
        self.live_bytes += grown
        self.peak_bytes = max(before, self.peak_bytes + max(0, grown))
