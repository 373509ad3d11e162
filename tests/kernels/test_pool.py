"""Max pooling in C equals torch's, values and the places that gradients go to."""

import pytest
import torch
from kernel_checks import assert_same_bits

from revedge import kernels
from revedge.kernels import reference

# kernel, stride, padding; the first is the one with code of its own
WINDOWS = [
    ((2, 2), (2, 2), (0, 0)),
    ((3, 3), (2, 2), (1, 1)),
    ((3, 2), (1, 3), (1, 0)),
    ((2, 2), (1, 1), (1, 1)),
]
SIZES = [(1, 1, 2, 3), (3, 2, 5, 4), (2, 3, 33, 31), (4, 40, 32, 32)]


def check(x: torch.Tensor, window: tuple) -> None:
    y = kernels.max_pool(x, *window)
    assert_same_bits(y, reference.max_pool(x, *window))
    g = torch.randn_like(y)
    g[..., :1] = -0.0
    assert_same_bits(
        kernels.max_pool_backward(x, g, *window), reference.max_pool_backward(x, g, *window)
    )


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_max_pool(size: tuple, window: tuple, threads: int) -> None:
    """Real values; spikes, whose windows are full of equal values; infinities and NaN."""
    check(torch.randn(size), window)
    check((torch.rand(size) < 0.3).float(), window)
    rare = torch.randn(size)
    rare.view(-1)[::5] = -torch.inf
    rare.view(-1)[3::7] = torch.nan
    check(rare, window)


@pytest.mark.usefixtures("native")
def test_a_window_that_is_none() -> None:
    """Padding of more than half a window, and a gradient of another shape, are errors."""
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="at most 1"):
        kernels.max_pool(x, (2, 2), (2, 2), (2, 2))
    with pytest.raises(ValueError, match="needs"):
        kernels.max_pool_backward(x, x, (2, 2), (2, 2), (0, 0))
