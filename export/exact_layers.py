"""What an exact inference form is made of besides integer operators and cells. Scriptable, no autograd function.

Every one ends in a rounding to the grid that the exact value lies on. In exact arithmetic it rounds nothing; what it
takes away are the errors of runtimes that do not add the products one by one (Winograd convolution: 1e-6 to 1e-5).
"""

from typing import Final

import torch
from torch import Tensor, nn

DIGIT = 256  # of `TwoDigits`: both digits lie within -128 .. 128


class InputLevels(nn.Module):
    """Frames as the 8-bit integers they were: ``clamp(round(x / scale), 0, 255)``."""

    inverse: Final[float]
    scaled: Final[bool]
    top: Final[float]

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inverse = 1.0 / scale
        self.scaled = scale != 1.0
        self.top = 255.0

    def forward(self, x: Tensor) -> Tensor:
        """Any finite input becomes one that the certificate covers."""
        if self.scaled:
            x = x * self.inverse
        return torch.clamp(torch.round(x), 0.0, self.top)


class SumOf(nn.Module):
    """The sum over each window of an average pool: ``round(pool(x) * count * 2**bits) * 2**-bits``."""

    up: Final[float]
    down: Final[float]
    fine: Final[bool]

    def __init__(self, pool: nn.Module, count: int, bits: int) -> None:
        super().__init__()
        self.pool = pool
        self.up = float(count) * 2.0**bits
        self.down = 2.0**-bits
        self.fine = bits != 0

    def forward(self, x: Tensor) -> Tensor:
        """``x`` lies on multiples of ``2**-bits``."""
        x = torch.round(self.pool(x) * self.up)
        if self.fine:
            x = x * self.down
        return x


class Snap(nn.Module):
    """Behind an operator with integer weights: ``round(x * 2**bits) * scale`` per channel of ``[B, C, ...]``.

    Args:
        scale: ``[C]``, powers of two.
        bits: of the grid of the operator's input.
    """

    scale: Tensor
    up: Final[float]
    fine: Final[bool]

    def __init__(self, scale: Tensor, bits: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.up = 2.0**bits
        self.fine = bits != 0

    def forward(self, x: Tensor) -> Tensor:
        """From integers to values."""
        if self.fine:
            x = x * self.up
        shape = [1, -1] + [1] * (x.dim() - 2)
        return torch.round(x) * self.scale.reshape(shape)


class Scaled(nn.Module):
    """Times a power of two."""

    factor: Final[float]

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """An exact product."""
        return x * self.factor


class TwoDigits(nn.Module):
    """The last linear layer, where it reads integers of 16 bits: upper and lower digit are multiplied apart.

    Either sum of products is exact. The two are added by one float32 addition, whose rounding is the same everywhere,
    and nothing but the logits comes of it.

    Args:
        op: integer weights, no bias.
        bias: ``[C]``, integers.
        scale: ``[C]``, powers of two.
        bits: of the grid of the operator's input; at most 2**15 of its steps large.
    """

    bias: Tensor
    scale: Tensor
    up: Final[float]
    base: Final[float]
    down: Final[float]

    def __init__(self, op: nn.Linear, bias: Tensor, scale: Tensor, bits: int) -> None:
        super().__init__()
        self.op = op
        self.register_buffer("bias", bias)
        self.register_buffer("scale", scale)
        self.up = 2.0**bits
        self.base = float(DIGIT)
        self.down = 1.0 / DIGIT

    def forward(self, x: Tensor) -> Tensor:
        """From values ``[B, ...]`` to logits ``[B, C]``."""
        n = torch.round(x * self.up)
        upper = torch.round(n * self.down)
        lower = n - upper * self.base
        low = torch.round(self.op(lower)) + self.bias
        y: Tensor = torch.round(self.op(upper)) * self.base + low
        return y * self.scale
