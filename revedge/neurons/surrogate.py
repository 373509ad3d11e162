"""The spike, and the smooth derivative that stands in for its own in the backward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revedge.errors import UsageError
from revedge.kernels.params import SURROGATES
from revedge.kernels.reference import surrogate_derivative

_DEFAULT_ALPHA = {"atan": 2.0, "sigmoid": 4.0, "rectangle": 1.0, "triangle": 1.0}


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A surrogate derivative of the spike at distance d from the threshold.

    atan       (alpha/2) / (1 + (pi/2 alpha d)^2)              SpikingJelly's ``surrogate.ATan``
    sigmoid    alpha sig(alpha d) (1 - sig(alpha d))           SpikingJelly's ``surrogate.Sigmoid``
    rectangle  alpha where abs(d) < 0.5/alpha, else 0
    triangle   alpha max(0, 1 - alpha abs(d))

    Args:
        name: one of the above.
        alpha: sharpness, > 0; None means the default of the name (2, 4, 1, 1).

    Raises:
        UsageError: unknown name, or alpha not positive.
    """

    name: str = "atan"
    alpha: float | None = None

    def __post_init__(self) -> None:
        """Check, and fill the default in."""
        if self.name not in SURROGATES:
            raise UsageError(f"surrogate {self.name!r} does not exist; use {', '.join(SURROGATES)}")
        if self.alpha is None:
            object.__setattr__(self, "alpha", _DEFAULT_ALPHA[self.name])
        elif not self.alpha > 0:
            raise UsageError(f"surrogate alpha {self.alpha} is not positive; use 1 to 10")

    @property
    def sharpness(self) -> float:
        """``alpha``, filled in."""
        assert self.alpha is not None
        return self.alpha

    @classmethod
    def of(cls, value: "str | Surrogate") -> "Surrogate":
        """Return ``value``, or the surrogate of that name with its default alpha."""
        return value if isinstance(value, Surrogate) else cls(value)

    def derivative(self, d: Tensor) -> Tensor:
        """Return the surrogate derivative at ``d``, any shape."""
        return surrogate_derivative(d, self.name, self.sharpness)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, v_threshold: float, name: str, alpha: float) -> Tensor:
        ctx.save_for_backward(h)
        ctx.settings = (v_threshold, name, alpha)
        return (h >= v_threshold).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = grads
        (h,) = ctx.saved_tensors
        v_threshold, name, alpha = ctx.settings
        return g * surrogate_derivative(h - v_threshold, name, alpha), None, None, None


def spike(h: Tensor, v_threshold: float, surrogate: Surrogate) -> Tensor:
    """Return 1.0 where ``h >= v_threshold``, else 0.0; differentiable through the surrogate."""
    s: Tensor = _Spike.apply(h, v_threshold, surrogate.name, surrogate.sharpness)  # type: ignore[no-untyped-call]
    return s
