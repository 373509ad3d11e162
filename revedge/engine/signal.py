"""What a neuron gave out, held as float32 or at one bit per value, and read in chunks of samples.

A chunk is a range of planes; a plane is one sample at one time step. Spikes at one bit become float32 only chunk by
chunk, in front of the operator that eats them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from revedge import kernels

# Two tensors of this size stay in the second-level cache of small machines; larger chunks run no faster, smaller ones
# pay for the call (measured: benchmarks/).
CHUNK_BYTES = 2 * 2**20
_CHANNEL_BLOCK = 16
_asked_bytes: ContextVar[int | None] = ContextVar("chunk_bytes", default=None)


@contextmanager
def chunks_of(chunk_bytes: int | None) -> Iterator[None]:
    """Cut chunks of so many bytes inside; None: `CHUNK_BYTES`. A run's forward and backward pass are alike in this."""
    before = _asked_bytes.set(chunk_bytes)
    try:
        yield
    finally:
        _asked_bytes.reset(before)


class Signal:
    """A neuron's output ``[T, B, ...]``.

    Args:
        shape: of the whole.
        dense: float32 values; or
        bits: one bit per value, see `revedge.kernels.pack_bits`.
        membranes: what a reversible neuron with a stored backward keeps besides its output.
        window: the neuron's output has been pooled by it; ``shape`` is that of the result.
        unpooled: shape of the neuron's output, where ``bits`` are all of its spikes and reading them takes the means.
    """

    def __init__(
        self,
        shape: torch.Size,
        *,
        dense: Tensor | None = None,
        bits: Tensor | None = None,
        membranes: Tensor | None = None,
        window: kernels.Window | None = None,
        unpooled: torch.Size | None = None,
    ) -> None:
        self.shape = shape
        self.dense = dense
        self.bits = bits
        self.membranes = membranes
        self.window = window
        self._unpooled = unpooled

    @property
    def like(self) -> Tensor:
        """A tensor on the signal's device."""
        found = self.bits if self.dense is None else self.dense
        assert found is not None
        return found

    @property
    def planes(self) -> int:
        """T * B."""
        return self.shape[0] * self.shape[1]

    @property
    def plane_shape(self) -> torch.Size:
        """Shape of one plane."""
        return self.shape[2:]

    @property
    def plane_bits(self) -> int:
        """How many bits stand for one plane."""
        return math.prod(self.plane_shape if self._unpooled is None else self._unpooled[2:])

    def read(self, start: int, stop: int) -> Tensor:
        """Return the planes ``[stop - start, ...]`` as float32."""
        if self.dense is not None:
            return self.dense.flatten(0, 1)[start:stop]
        assert self.bits is not None
        size = self.plane_bits
        if self._unpooled is not None:
            assert self.window is not None
            shape = (stop - start, *self._unpooled[2:])
            return kernels.average_bits(self.bits[start * size // 8 :], shape, self.window)
        return kernels.unpack_bits(
            self.bits[start * size // 8 :], (stop - start, *self.plane_shape)
        )

    def steps(self, first: int, last: int) -> "Signal":
        """Return the time steps ``first`` to ``last``, of bits that begin at a byte there; no copy."""
        assert self.bits is not None
        assert self.window is None
        shape = torch.Size([last - first, *self.shape[1:]])
        return Signal(shape, bits=self.bits[first * self.shape[1] * self.plane_bits // 8 :])

    def whole(self) -> Tensor:
        """Return all planes ``[T*B, ...]`` as float32."""
        return self.read(0, self.planes)


def chunks(signal: Signal, *, whole: bool, backward: bool = False) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the chunks; each starts at a byte of the bits. ``whole`` gives one chunk.

    ``backward`` gives them from the last to the first.

    The same signal is cut the same way in forward and backward and under every strategy: a convolution may round
    differently with the number of samples it sees at once.
    """
    count = signal.planes if whole else planes_per_chunk(signal)
    starts = range(0, max(1, signal.planes), max(1, count))  # of no planes, one chunk of none
    for start in reversed(starts) if backward else starts:
        yield start, min(start + count, signal.planes)


def planes_per_chunk(signal: Signal) -> int:
    """How many planes of ``signal`` are a chunk; as many at least as make a byte of bits."""
    size = max(1, math.prod(signal.plane_shape))
    aligned = 8 // math.gcd(8, max(1, signal.plane_bits))
    # oneDNN works on blocks of 16 channels: a plane of fewer takes as much room.
    channels = max(1, signal.plane_shape[0]) if signal.plane_shape else 1
    plane_bytes = 4 * size // channels * max(_CHANNEL_BLOCK, channels)
    asked = _asked_bytes.get()
    fitting = (CHUNK_BYTES if asked is None else asked) // plane_bytes
    return max(1, fitting // aligned) * aligned
