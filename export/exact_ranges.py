"""How large, and how fine, the values of an exact form can be: what its certificate is computed from.

A value on multiples of 2**-bits and at most ``bound`` in size is an integer of at most bound * 2**bits. float32 adds
and multiplies integers below 2**24 without rounding, in any order, blocking or number of threads.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from revedge.errors import ExportError

LIMIT = 1 << 24


@dataclass(frozen=True, slots=True)
class Range:
    """Of each channel: largest size, and grid; both float64 ``[C]``."""

    bound: Tensor
    bits: Tensor

    @classmethod
    def of(cls, channels: int, bound: float, bits: int = 0) -> "Range":
        """The same for all channels."""
        return cls(_full(channels, bound), _full(channels, bits))

    @property
    def finest(self) -> int:
        """Bits of the finest channel."""
        return int(self.bits.max())

    def plus(self, other: "Range") -> "Range":
        """Of the sum of two values."""
        return Range(self.bound + other.bound, torch.maximum(self.bits, other.bits))

    def scaled(self, count: float = 1.0, shift: int = 0) -> "Range":
        """Of ``count`` values added up, times 2**-shift."""
        return Range(self.bound * count * 2.0**-shift, self.bits + shift)

    def rounded(self, bits: int) -> "Range":
        """Of the value rounded to multiples of 2**-bits."""
        return Range(self.bound + 2.0 ** -(bits + 1), self.bits.clamp(max=bits))

    def halves(self, width: int) -> tuple["Range", "Range"]:
        """Of the first ``width`` channels, and of the others."""
        first = Range(self.bound[:width], self.bits[:width])
        return first, Range(self.bound[width:], self.bits[width:])

    def join(self, other: "Range") -> "Range":
        """Of two values side by side."""
        return Range(torch.cat([self.bound, other.bound]), torch.cat([self.bits, other.bits]))

    def spread(self, count: int) -> "Range":
        """Of each channel flattened into ``count`` values."""
        return Range(self.bound.repeat_interleave(count), self.bits.repeat_interleave(count))

    def integers(self, spare_bits: float = 0.0) -> float:
        """Largest integer that a value of this range is, on a grid 2**spare_bits finer."""
        return float((self.bound * torch.exp2(self.bits + spare_bits)).max())


def _full(channels: int, value: float) -> Tensor:
    return torch.full((channels,), float(value), dtype=torch.float64)


class TooWideError(ExportError):
    """A sum may reach 2**24 grid steps."""


@dataclass(slots=True)
class Certificate:
    """For every place where values are added or multiplied, the largest integer that can occur there.

    Attributes:
        stream_bits: residual streams are multiples of 2**-stream_bits.
        entries: (place, what is added, largest integer).
    """

    stream_bits: int
    entries: list[tuple[str, str, int]] = field(default_factory=list)

    def enter(self, place: str, what: str, largest: float) -> None:
        """Note one place.

        Raises:
            TooWideError: not below 2**24.
        """
        if not largest < LIMIT:
            raise TooWideError(
                f"{place}: {what} may reach {largest:.3g} grid steps, float32 is exact below {LIMIT}; use fewer "
                "channels or --numerics float"
            )
        self.entries.append((place, what, int(largest)))

    @property
    def largest(self) -> int:
        """The largest integer anywhere."""
        return max((entry[2] for entry in self.entries), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in the metadata of a file."""
        return {
            "limit": LIMIT,
            "largest": self.largest,
            "stream_bits": self.stream_bits,
            "places": [list(entry) for entry in self.entries],
        }
