"""What a tail gives out: whole, or a slab of channels at a time.

A batch norm and a neuron work on each channel by itself, over all of time and batch. So the tensor between a
convolution and the neuron behind it need never stand whole: a slab of output channels is computed, normalized with the
exact statistics of the full batch, turned into spike bits (or, backward, into its part of the gradient), and dropped.
Cutting over channels takes ONE sweep. Cutting over samples or time would take two, each with a convolution of its own,
because the statistics of a channel are those of all samples and times.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from revedge.engine.signal import Signal
from revedge.engine.tail import Chance, tail_forward, tail_shape
from revedge.engine.unit import Unit
from revedge.kernels import ChannelSums

LEAST_CHANNELS = 8  # of a slab: with fewer a convolution leaves most of a vector unused
_EVEN_CHANNELS = 16  # slabs are multiples of it where they are larger


class Output:
    """The output ``[T, B, C, ...]`` of the tail of ``unit``, computed when it is asked for.

    Args:
        unit: whose tail.
        signal: the tail's input.
        chance: as drawn in the forward pass.
        slab_bytes: cut into slabs of at most so many bytes (but of `LEAST_CHANNELS` or more); None: one piece.
            The cuts depend on shapes and this number only, so a recompute makes the cuts of the forward pass.
    """

    def __init__(self, unit: Unit, signal: Signal, chance: Chance, slab_bytes: int | None) -> None:
        self._unit, self._signal, self._chance = unit, signal, chance
        self._tensor: Tensor | None = None
        self._cuts = [(0, 0)]
        if slab_bytes is not None and _can_be_cut(unit):
            self._shape = tail_shape(unit, signal)
            self._cuts = cut(self._shape, slab_bytes)

    free = False

    @classmethod
    def of(cls, tensor: Tensor, *, free: bool = False) -> "Output":
        """Return an output that is there already; ``free``: nobody else needs it, so that it may be overwritten."""
        output = cls.__new__(cls)
        output._tensor = tensor
        output.free = free
        output._cuts = [(0, 0)]
        return output

    @property
    def there(self) -> bool:
        """Whether it stands in memory."""
        return self._tensor is not None

    @property
    def sliced(self) -> bool:
        """Whether `slabs` yields more than one slab."""
        return self._tensor is None and len(self._cuts) > 1

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole, without computing it; of a sliced output only."""
        return self._shape

    def slabs(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first channel, slab ``[T, B, c, ...]``)."""
        if not self.sliced:
            yield 0, self.whole()
            return
        for first, last in self._cuts:
            yield first, tail_forward(self._unit, self._signal, self._chance, [(first, last)])

    def steps(self, first: int, last: int) -> Tensor:
        """Return time steps ``first`` to ``last``, by the cuts of the whole; they begin and end with chunks."""
        return self.part(self._signal.steps(first, last))

    def part(self, signal: Signal) -> Tensor:
        """Return what the tail gives out for ``signal``, some steps of its input, by the cuts of the whole."""
        return tail_forward(self._unit, signal, self._chance, self._cuts if self.sliced else None)

    @property
    def on_gpu(self) -> bool:
        """Whether it is, or will be, on a GPU."""
        return (self._signal.like if self._tensor is None else self._tensor).is_cuda

    def whole(self, sums: ChannelSums | None = None) -> Tensor:
        """Return all channels; computed once, by the same cuts. ``sums`` are taken of it on the way."""
        if self._tensor is None and len(self._cuts) == 1:
            self._tensor = tail_forward(self._unit, self._signal, self._chance, sums=sums)
            return self._tensor
        if self._tensor is None:
            self._tensor = tail_forward(self._unit, self._signal, self._chance, self._cuts)
        if sums is not None:
            sums.add(self._tensor.flatten(0, 1))
        return self._tensor


def cut(shape: torch.Size, slab_bytes: int) -> list[tuple[int, int]]:
    """Return (first, last) channel of the slabs of a tensor ``[T, B, C, ...]``."""
    channels = shape[2]
    channel_bytes = max(1, 4 * shape.numel() // max(1, channels))
    count = max(LEAST_CHANNELS, slab_bytes // channel_bytes)
    if count < channels and count > _EVEN_CHANNELS:
        count -= count % _EVEN_CHANNELS
    return [(first, min(first + count, channels)) for first in range(0, channels, count)]


def _can_be_cut(unit: Unit) -> bool:
    """Whether each output channel is computed with weights of its own, in a way that we know."""
    op = unit.op
    if type(op) is nn.Conv2d:
        return op.groups == 1 and op.padding_mode == "zeros" and not isinstance(op.padding, str)
    return type(op) is nn.Linear
