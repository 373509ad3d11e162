"""What stands in for the derivative of the spike, ``dS/dh`` at ``d = h - v_threshold``.

Names and shapes are SpikingJelly's: ``atan`` is ``surrogate.ATan``, ``sigmoid`` is
``surrogate.Sigmoid``; ``rectangle`` and ``triangle`` have area 1 and height ``alpha``.
"""

import math

import torch
from torch import Tensor

from revedge.kernels.reference.rounding import to_float32

_ROUND_TO_INTEGER = 12582912.0  # 1.5 * 2**23: adding and subtracting it rounds half to even
_LOG2_E = to_float32(math.log2(math.e))
_LN2_HIGH = 0.693359375  # few bits, so that n * _LN2_HIGH is exact
_LN2_LOW = to_float32(math.log(2.0) - 0.693359375)
_LOWEST = -86.0  # exp of it, 4.5e-38, is still a normal float32
# exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2)/2; P from the Cephes library's expf.
_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)


def exp_of_negative(y: Tensor) -> Tensor:
    """Return exp(y) for y <= 0, relative error below 3e-7; exp(-86) below -86 and for NaN.

    Made of operations that C and PyTorch round alike, which the libraries' own exp are not.
    """
    if y.dtype != torch.float32:
        return y.exp()
    y = torch.where(y > _LOWEST, y, _LOWEST)
    n = (y * _LOG2_E + _ROUND_TO_INTEGER) - _ROUND_TO_INTEGER
    r = (y - n * _LN2_HIGH) - n * _LN2_LOW
    q = torch.full_like(r, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        q = q * r + to_float32(coefficient)
    e = (q * (r * r) + r) + 1.0
    power_of_two = ((n.to(torch.int32) + 127) << 23).view(torch.float32)
    return e * power_of_two


def surrogate_derivative(d: Tensor, name: str, alpha: float) -> Tensor:
    """Return the surrogate derivative at ``d = h - v_threshold``, any shape.

    Args:
        d: distance of the membrane from the threshold.
        name: one of :data:`revedge.kernels.SURROGATES`.
        alpha: sharpness, > 0.

    float32 is the definition that the C code equals bit for bit; float64 serves as its referee.

    Raises:
        ValueError: ``name`` is not one of them.
    """
    alpha = to_float32(alpha)
    if name == "atan":  # (alpha / 2) / (1 + (pi/2 alpha d)^2)
        u = d * to_float32(math.pi / 2 * alpha)
        return (u * u + 1.0).reciprocal() * (alpha * 0.5)
    if name == "sigmoid":  # alpha sig(alpha d) (1 - sig(alpha d)), without cancellation
        e = exp_of_negative(-(d * alpha).abs())
        q = e + 1.0
        return (e * alpha) / (q * q)
    if name == "rectangle":
        return torch.where(d.abs() < to_float32(0.5 / alpha), alpha, 0.0).to(d.dtype)
    if name == "triangle":
        rest = 1.0 - d.abs() * alpha
        return torch.where(rest > 0.0, rest, 0.0) * alpha
    raise ValueError(f"surrogate {name!r} is unknown; use atan, sigmoid, rectangle or triangle")
