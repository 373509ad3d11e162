"""Surrogate derivatives on the GPU; the definition is reference/surrogates.py, rounding by rounding.

``tl.div_rn`` everywhere: a plain ``/`` of float32 is an approximation on NVIDIA GPUs.
"""

import math

import triton
import triton.language as tl

from revedge.kernels.reference.rounding import to_float32


def surrogate_floats(alpha: float) -> tuple[float, float, float, float]:
    """Return (alpha, slope, height, half) as the reference rounds them."""
    alpha = to_float32(alpha)
    return alpha, to_float32(math.pi / 2 * alpha), alpha * 0.5, to_float32(0.5 / alpha)


@triton.jit
def exp_of_negative(y):
    """Return exp(y) for y <= 0: range reduction and a polynomial, as reference.exp_of_negative."""
    y = tl.where(y > -86.0, y, -86.0)
    n = (y * 1.44269502162933349609375 + 12582912.0) - 12582912.0  # 1.5 * 2^23: to an integer
    r = (y - n * 0.693359375) - n * -2.12194441701285541057586669921875e-4
    q = r * 1.9875691500e-4 + 1.3981999507e-3
    q = q * r + 8.3334519073e-3
    q = q * r + 4.1665795894e-2
    q = q * r + 1.6666665459e-1
    q = q * r + 5.0000001201e-1
    e = (q * (r * r) + r) + 1.0
    return e * ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def surrogate_at(d, alpha, slope, height, half, KIND: tl.constexpr):
    """Return the derivative at ``d``; KIND is the position in SURROGATES."""
    if KIND == 0:
        u = d * slope
        result = tl.div_rn(1.0, u * u + 1.0) * height
    elif KIND == 1:
        e = exp_of_negative(-tl.abs(d * alpha))
        q = e + 1.0
        result = tl.div_rn(e * alpha, q * q)
    elif KIND == 2:
        result = tl.where(tl.abs(d) < half, alpha, 0.0)
    else:
        rest = 1.0 - tl.abs(d) * alpha
        result = tl.where(rest > 0.0, rest, 0.0) * alpha
    return result
