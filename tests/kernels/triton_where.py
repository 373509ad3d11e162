"""Where the checks of the Triton kernels run, and the order in which those kernels add."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from kernel_checks import assert_same_bits, neuron_variants
from torch import Tensor

from revedge.kernels._dispatch import repeats
from revedge.kernels.reference import norm as reference_norm

VARIANTS = neuron_variants()
TILE = 1024


@dataclass(frozen=True)
class Where:
    """``op(name)`` is an operator on plain floats; ``launch`` the module that cuts up the work."""

    device: str
    op: Callable[[str], Callable[..., Any]]
    launch: Any

    def __call__(self, name: str, *args: object) -> tuple[Any, ...]:
        """Run an operator on copies on the device; return its results on the CPU."""
        sent = [self._sent(a) for a in args]
        results = self.op(name)(*sent)
        for before, after in zip(args, sent, strict=True):  # what was overwritten comes back
            if isinstance(before, Tensor) and isinstance(after, Tensor) and not repeats(before):
                before.copy_(after)
        if not isinstance(results, (tuple, list)):
            results = (results,)
        return tuple(r.cpu() if isinstance(r, Tensor) else r for r in results)

    def _sent(self, a: object) -> object:
        if isinstance(a, list):
            return [self._sent(each) for each in a]
        return self._send(a) if isinstance(a, Tensor) else a

    def _send(self, a: Tensor) -> Tensor:
        return a[:1].to(self.device).expand(a.shape) if repeats(a) else a.to(self.device)

    @contextmanager
    def one_slab(self) -> Iterator[None]:
        """Give backward passes the least scratch: one program takes all blocks in turn."""
        before = self.launch.SCRATCH_BYTES
        self.launch.SCRATCH_BYTES = 1
        yield
        self.launch.SCRATCH_BYTES = before


def same(actual: tuple[Any, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)


def sums_in_documented_order(values: Tensor, *, backward: bool = False) -> Tensor:
    """Return the sum of each channel of ``values`` [M, C, ...] as triton/norm.py describes it, whichever way."""
    del backward
    m, channels = values.shape[:2]
    flat = values.reshape(m, channels, -1).double()
    size = flat.shape[2]
    columns = 1
    while columns < min(TILE, size):
        columns *= 2
    rows = TILE // columns
    down, across = -(-m // rows), -(-size // columns)
    padded = torch.zeros(down * rows, channels, across * columns, dtype=torch.float64)
    padded[:m, :, :size] = flat
    tiles = padded.reshape(down, rows, channels, across, columns).permute(2, 0, 3, 1, 4)
    tiles = tiles.reshape(channels, down * across, TILE)
    wanted, parts = min(256, -(-down * across // 4)), 1
    while parts < wanted:
        parts *= 2
    each = -(-tiles.shape[1] // parts)
    lanes = torch.zeros(channels, parts, TILE, dtype=torch.float64)
    for index in range(tiles.shape[1]):
        lanes[:, index // each] += tiles[:, index]
    for _ in range(2):  # the lanes of a piece, then the pieces
        while lanes.shape[-1] > 1:
            half = lanes.shape[-1] // 2
            lanes = lanes[..., :half] + lanes[..., half:]
        lanes = lanes.squeeze(-1)
    return lanes


@contextmanager
def documented_order() -> Iterator[None]:
    """Make the reference add in the order of the Triton kernels: then every bit must agree."""
    before = reference_norm.channel_sums
    reference_norm.channel_sums = sums_in_documented_order
    yield
    reference_norm.channel_sums = before
