"""What malloc takes for a tensor, and what a convolution hides beside its operands. Free of torch.

Both are used by the tracer, which meets tensors, and by the closed form (`form`), which knows their shapes.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from revedge.allocator import MMAP_THRESHOLD_BYTES

PRODUCT_BYTES = 512 << 10  # that a matrix product of oneDNN works on
# What the gradient of a weight in bfloat16 works on, one strip after the other.
LOW_PRODUCT_BYTES = 1 << 20
_CHANNEL_BLOCK = 16  # oneDNN copies operands into blocks of up to 16 channels
_HEAP_HEADER_BYTES = 64
Shape = tuple[int, ...]


def allocated_bytes(nbytes: int, page_bytes: int) -> int:
    """Return what malloc takes for a tensor of ``nbytes`` under the policy of `revedge.allocator`.

    Tensors are aligned to 64 bytes. From 64 KiB on a block is a mapping of its own: whole pages,
    one more for the header and the alignment. Below, it lies on the heap behind a header.
    """
    if nbytes == 0:
        return 0
    rounded = -(-nbytes // 64) * 64
    if rounded + _HEAP_HEADER_BYTES < MMAP_THRESHOLD_BYTES:
        return rounded + _HEAP_HEADER_BYTES
    return (-(-rounded // page_bytes) + 1) * page_bytes


def copies_bytes(shapes: Iterable[Shape], itemsize: int) -> int:
    """Return the bytes of tensors of these shapes copied once, with channels (of a weight: both) padded to 16."""
    total = 0
    for shape in shapes:
        if len(shape) == 4:
            n, c, h, w = shape
            total += n * (-(-c // _CHANNEL_BLOCK) * _CHANNEL_BLOCK) * h * w * itemsize
    return total


class Convolution(NamedTuple):
    """One call of a convolution, or of its backward."""

    x: Shape  # [N, C, H, W]
    weight: Shape
    y: Shape
    bias: bool
    stride: Shape = (1, 1)
    dilation: Shape = (1, 1)
    groups: int = 1
    wanted: tuple[bool, bool] | None = None  # gradients of x and weight; None: the forward pass
    itemsize: int = 4  # bytes of a value; 2: bfloat16

    @property
    def narrow(self) -> bool:
        """Whether oneDNN has no kernel for the gradient of the weight and unfolds it (found by trying).

        It is a matrix product then, whose generated code takes 4.5 MiB: a base of its own (base.py).
        """
        if self.wanted is None or not self.wanted[1]:
            return False
        return 3 < self.x[1] < 16 and max(self.x[2:]) < max(self.weight[2:])

    def is_for_onednn(self, threads: int) -> bool:
        """Whether torch has oneDNN compute it; small ones of float32 it unfolds itself (Convolution.cpp)."""
        if not self.x[0]:  # an empty batch, sent through for the shape of its result
            return False
        if self.itemsize < 4:
            return True
        kernel = self.weight[2:]
        one_by_one = max(kernel) == max(self.stride) == max(self.dilation) == 1
        if one_by_one and self.x[0] < 16 and threads == 1:
            return False
        return self.groups > 1 or min(kernel) > 3 or self.x[0] > 1 or math.prod(self.x) > 20480

    def copied(self) -> list[Shape]:
        """Return the shapes of what oneDNN copies to compute it.

        Forward: input, weight and output. Backward: the gradient of the output, input and weight, one gradient after
        the other; that of the input of a strided convolution is made twice. In bfloat16 also a weight's gradient, which
        is summed in float32, and what a convolution of one sample by one pixel makes. Measured on x86-64 with oneDNN
        (`benchmarks/conv_workspace.py`): never below the real workspace.
        """
        low = self.itemsize < 4
        single = low and self.x[0] == 1 and max(self.weight[2:]) == 1
        again: list[Shape] = []
        if self.wanted is None:
            again = [self.y] * single
        elif self.groups > 1:  # not measured
            made = zip((self.x, self.weight), self.wanted, strict=True)
            again = [shape for shape, wanted in made if wanted]
        elif self.wanted[0] and (single or max(self.stride) > 1):
            again = [self.x]
        if low and self.wanted is not None and self.wanted[1]:
            again.append(self.weight)
        return [self.x, self.weight, self.y, *again]

    def workspace_bytes(self, threads: int) -> int:
        """Return the bound on what it takes beside its operands and results."""
        if not self.x[0]:
            return 0
        if not self.is_for_onednn(threads):  # the columns of one input, for a matrix product
            return self.x[1] * math.prod(self.weight[2:]) * math.prod(self.y[2:]) * 4
        works_on = self.narrow * PRODUCT_BYTES
        if self.itemsize < 4 and self.wanted is not None and self.wanted[1]:
            works_on = LOW_PRODUCT_BYTES
        return copies_bytes(self.copied(), self.itemsize) + works_on
