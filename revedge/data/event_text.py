"""Events as lines of text, ``t x y p`` with blanks or commas between, cut into windows as they arrive."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from revedge.data.event_files import EVENT_DTYPE, LATEST_US, Events, events_of
from revedge.errors import DataError

_CHUNK_BYTES = 1 << 16
_FARTHEST = 1 << 30


class Windows:
    """Windows ``[begin, begin + length)`` of a stream of events; the first begins with the first event.

    Args:
        length_us: of a window.

    Attributes:
        late_events: that came after their window was closed; they are dropped.
    """

    def __init__(self, length_us: int) -> None:
        self.length_us = length_us
        self.late_events = 0
        self._begin: int | None = None
        self._waiting: list[Events] = []

    def add(self, events: Events) -> Iterator[tuple[int, Events]]:
        """Take events; yield (begin, events in order of time) of each window that has ended with something in it."""
        while len(events):
            if self._begin is None:
                self._begin = int(events["t"][0])
            late = events["t"] < self._begin
            self.late_events += int(np.count_nonzero(late))
            events = events[~late]
            after = events["t"] >= self._begin + self.length_us
            if not after.any():
                self._waiting.append(events)
                return
            first = int(np.argmax(after))
            self._waiting.append(events[:first])
            yield from self.rest()
            passed = (int(events["t"][first]) - self._begin) // self.length_us
            self._begin += passed * self.length_us
            events = events[first:]

    def rest(self) -> Iterator[tuple[int, Events]]:
        """Yield the window that has not ended yet, if something is in it."""
        waiting = np.concatenate([np.empty(0, EVENT_DTYPE), *self._waiting])
        self._waiting = []
        if len(waiting) and self._begin is not None:
            yield self._begin, waiting[np.argsort(waiting["t"], kind="stable")]


def read_lines(stream: BinaryIO) -> Iterator[Events]:
    """Yield events as they arrive, as many as there are; returns at the end of the stream.

    Raises:
        DataError: a line that is not four whole numbers; names it.
    """
    left, line = b"", 1
    read = getattr(stream, "read1", stream.read)
    while chunk := read(_CHUNK_BYTES):
        whole, cut, left = (left + chunk).rpartition(b"\n")
        if len(left) > _CHUNK_BYTES:
            raise DataError(f"line {line} of the events has no end; send one event a line: t x y p")
        if cut:
            yield _parsed(whole, line)
            line += whole.count(b"\n") + 1
    if left.strip():
        yield _parsed(left, line)


def _parsed(text: bytes, first_line: int) -> Events:
    rows = []
    for number, line in enumerate(text.split(b"\n"), first_line):
        words = line.replace(b",", b" ").split()
        if not words:
            continue
        try:
            t, x, y, p = map(int, words)
        except ValueError:
            t, x, y, p = 0, 0, 0, -1
        if abs(t) >= LATEST_US or max(abs(x), abs(y)) > _FARTHEST or p not in (0, 1):
            shown = line[:60].decode("ascii", "replace")
            raise DataError(
                f"line {number} of the events is {shown!r}; send t x y p: whole numbers, t in us and less than 2^62, "
                "p 0 or 1"
            )
        rows.append((t, x, y, p))
    return events_of(*np.array(rows, np.int64).reshape(-1, 4).T)
