"""Work of a traced computation: multiplications are those of the textbook, and chunks that are not run count."""

import torch
from torch import nn
from torch.nn import functional

from revedge.planner.tracer import StorageTracker


def traced(run) -> StorageTracker:  # type: ignore[no-untyped-def]
    with StorageTracker(page_bytes=4096, native_kernels=True) as found:
        run()
    return found


def test_multiplications_of_a_convolution() -> None:
    """Forward: one per output value and weight of its channel; backward: as much for each gradient."""
    weight = torch.empty(8, 3, 5, 3, device="meta", requires_grad=True)
    x = torch.empty(2, 3, 11, 9, device="meta", requires_grad=True)
    # Stride 2 and padding 1 leave (11 + 2 - 5) // 2 + 1 = 5 rows.
    forward = 2 * 8 * (5 * 9) * 3 * 5 * 3

    def run(given: torch.Tensor) -> None:
        functional.conv2d(given, weight, stride=(2, 1), padding=1).sum().backward()

    assert traced(lambda: run(x)).work.multiplications == 3 * forward
    assert traced(lambda: run(x.detach())).work.multiplications == 2 * forward


def test_multiplications_of_a_linear_layer() -> None:
    """As many as a matrix product has."""
    layer = nn.Linear(6, 7, device="meta")
    x = torch.empty(5, 6, device="meta")
    assert traced(lambda: layer(x)).work.multiplications == 5 * 6 * 7
    assert traced(lambda: layer(x).sum().backward()).work.multiplications == 2 * 5 * 6 * 7


def test_moved_bytes() -> None:
    """Operands and results, once each; a view moves nothing."""
    x = torch.empty(100, device="meta")
    work = traced(lambda: (x.view(10, 10), x + 1, x.add_(1))).work
    assert work.calls == 2
    assert work.moved_bytes == 4 * (200 + 100)
