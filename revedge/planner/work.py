"""Counts what a traced computation would do: multiplications, bytes that pass through memory, calls."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


@dataclass(slots=True)
class Work:
    """Work so far; ``repeat`` says how often what is counted now would run."""

    multiplications: int = 0  # of convolutions and matrix products
    moved_bytes: int = 0  # operands and results of everything else
    calls: int = 0  # of operators that are not views
    repeat: int = 1

    def add_since(self, before: "Work", times: int) -> None:
        """Count what was done since ``before`` so many times more."""
        self.multiplications += times * (self.multiplications - before.multiplications)
        self.moved_bytes += times * (self.moved_bytes - before.moved_bytes)
        self.calls += times * (self.calls - before.calls)

    def count(self, name: str, args: tuple[Any, ...], tensors: Iterable[Tensor]) -> None:
        """Count one call of the operator ``name``, whose operands and results are ``tensors``."""
        self.calls += self.repeat
        products = _multiplications(name, args)
        if products:
            self.multiplications += self.repeat * products
        else:
            sizes = [t.numel() * t.element_size() for t in tensors]
            # Unpacking is given all bits from its chunk on, and reads one for each value that it makes.
            moved = sizes[-1] if name == "revedge::unpack_bits" else sum(sizes)
            self.moved_bytes += self.repeat * moved


def _multiplications(name: str, args: tuple[Any, ...]) -> int:
    if (
        name == "aten::convolution"
    ):  # x [N, C, H, W], w [O, C / groups, K, K], stride, padding, dilation
        x, weight, _, stride, padding, dilation = args[:6]
        sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        places = math.prod((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        return int(x.shape[0] * places * weight.numel())
    if name == "aten::convolution_backward":
        g, _, weight, wanted = args[0], args[1], args[2], args[10]
        one = g.shape[0] * math.prod(g.shape[2:]) * weight.numel()
        return int(one * (bool(wanted[0]) + bool(wanted[1])))
    if name in _MATRIX_PRODUCTS:
        a, b = args[-2:]
        return int(math.prod(a.shape) * b.shape[-1])
    return 0
