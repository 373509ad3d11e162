"""Surrogate derivatives are the documented functions."""

import math

import pytest
import torch

from revedge.kernels.reference import exp_of_negative, surrogate_derivative


def test_exp_error() -> None:
    """The polynomial exp is within 3e-7 of exp in float64, over its whole range."""
    y = torch.cat([-torch.logspace(-8, math.log10(86.0), 200_000), torch.zeros(1)])
    exact = y.double().exp()
    error = ((exp_of_negative(y).double() - exact) / exact).abs().max()
    assert float(error) < 3e-7


def test_exp_outside_its_range() -> None:
    """Far below, and for NaN, the value is tiny, positive and finite."""
    far = exp_of_negative(torch.tensor([-86.5, -1e30, float("-inf"), float("nan")]))
    assert bool(((far > 0) & (far < 1e-37)).all())


def formula(name: str, alpha: float, d: float) -> float:
    if name == "atan":
        return alpha / 2 / (1 + (math.pi / 2 * alpha * d) ** 2)
    if name == "sigmoid":
        sig = 1 / (1 + math.exp(-alpha * d))
        return alpha * sig * (1 - sig)
    if name == "rectangle":
        return alpha if abs(d) < 0.5 / alpha else 0.0
    return alpha * max(0.0, 1 - alpha * abs(d))


@pytest.mark.parametrize("name", ["atan", "sigmoid", "rectangle", "triangle"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
def test_formula(name: str, alpha: float) -> None:
    """Each surrogate is its formula, to 1e-6 of its height (some ten float32 roundings)."""
    ds = [i / 37 for i in range(-120, 121)]
    values = surrogate_derivative(torch.tensor(ds), name, alpha).tolist()
    for d, value in zip(ds, values, strict=True):
        assert abs(value - formula(name, alpha, d)) <= 1e-6 * alpha


@pytest.mark.parametrize("name", ["atan", "sigmoid", "rectangle", "triangle"])
def test_area(name: str) -> None:
    """Each integrates to 1 over the line, as the derivative of a step must."""
    d = torch.linspace(-2000, 2000, 8_000_001, dtype=torch.float64)
    area = float(surrogate_derivative(d, name, 2.0).sum()) * 4000 / 8_000_000
    assert abs(area - 1) < 2e-3  # the tails of atan beyond 2000 hold 1.6e-4; the step is 5e-4
