"""`apply` on every usual way to write a reshape that joins T and B, or parts them again."""

from collections.abc import Callable

import pytest
import torch
from apply_nets import X, assert_close, conv, step
from torch import Tensor, nn

from revedge.engine import apply
from revedge.errors import UsageError
from revedge.neurons import LIFNode

JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "size open": lambda y, x: y.reshape(-1, *y.shape[2:]),
    "product of sizes": lambda y, x: y.reshape(y.size(0) * y.size(1), *y.size()[2:]),
    "product, and sizes one by one": lambda y, x: y.reshape(
        y.shape[0] * y.shape[1], y.size(2), y.size(3), y.size(4)
    ),
    "product, as a tuple": lambda y, x: y.view((y.size(0) * y.size(1), *y.size()[2:])),
    "size open, shape of the input": lambda y, x: y.reshape(-1, *x.shape[2:]),
}
PARTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quotient": lambda y, x: y.view(x.shape[0], y.shape[0] // x.shape[0], *y.shape[1:]),
    "quotient of a product": lambda y, x: y.view(
        x.size(0), x.size(0) * x.size(1) // x.size(0), *y.shape[1:]
    ),
    "sizes one by one": lambda y, x: y.view(x.size(0), x.size(1), y.size(1), y.size(2), y.size(3)),
    "size open": lambda y, x: y.reshape(x.size(0), -1, *y.size()[1:]),
    "all sizes of the input": lambda y, x: y.view(x.shape[0], x.shape[1], *x.shape[2:]),
    "shape of the input": lambda y, x: y.unflatten(0, x.shape[:2]),
    "numbers": lambda y, x: y.view(3, 2, 4, 8, 8),
}
WAYS = [(join, "quotient") for join in JOINS] + [
    ("size open", part) for part in PARTS if part != "quotient"
]


class _Net(nn.Module):
    """Two neurons with a convolution before each, folded and unfolded in one way."""

    def __init__(
        self, join: Callable[[Tensor, Tensor], Tensor], part: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.conv1, self.bn1, self.lif1 = conv(4, 4), nn.BatchNorm2d(4), LIFNode()
        self.conv2, self.bn2, self.lif2 = conv(4, 4), nn.BatchNorm2d(4), LIFNode()
        self.join, self.part = join, part

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes."""
        y = self.lif1(self.part(self.bn1(self.conv1(self.join(x, x))), x))
        return self.lif2(self.part(self.bn2(self.conv2(self.join(y, x))), x))


@pytest.mark.parametrize(("join", "part"), WAYS)
def test_a_reshape_is_understood(join: str, part: str) -> None:
    """The net is one run, and gives what it gave."""
    torch.manual_seed(0)
    plain = _Net(JOINS[join], PARTS[part])
    expected = step(plain)
    torch.manual_seed(0)
    net = _Net(JOINS[join], PARTS[part])
    applied = apply(net, "keep-spikes")
    assert [run.neurons for run in applied.report.runs] == [2]
    assert applied.report.left == ()
    assert_close(step(net), expected)


@pytest.mark.parametrize(("t", "b", "named"), [(2, 3, "T=2, B=3"), (2, -1, "T=2"), (-1, 3, "B=3")])
def test_t_and_b_in_turn_are_refused(t: int, b: int, named: str) -> None:
    """A neuron that the forward gives time as samples would be another one in a run."""
    net = _Net(JOINS["size open"], lambda y, x: y.view(t, b, *y.shape[1:]))
    assert step(net)["loss-out"].shape[:2] == (2, 3)
    apply(net)
    with pytest.raises(UsageError, match=f"names {named}, but there are T=3, B=2"):
        step(net)


def test_a_join_into_other_planes_is_refused() -> None:
    """The forward says rows of 4 where there are rows of 8."""
    net = _Net(lambda y, x: y.reshape(y.shape[0] * y.shape[1], y.size(2), 16, 4), PARTS["numbers"])
    assert step(net)["loss-out"].shape == X.shape
    apply(net)
    with pytest.raises(UsageError, match="more than joining or parting T and B"):
        step(net)


def test_planes_become_vectors_on_the_way() -> None:
    """``view(T, B, -1)`` of planes parts and flattens."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif, self.fc = conv(4, 2), LIFNode(), nn.Linear(128, 3)

        def forward(self, x: Tensor) -> Tensor:
            """Return logits of all steps."""
            y = self.conv(x.flatten(0, 1))
            return self.fc(self.lif(y.view(x.shape[0], x.shape[1], -1)))

    torch.manual_seed(0)
    plain = Net()
    expected = step(plain)
    torch.manual_seed(0)
    net = Net()
    applied = apply(net)
    assert [(run.neurons, run.units) for run in applied.report.runs] == [(1, 2)]
    assert_close(step(net), expected)


def test_sizes_outside_of_runs_are_spread_as_before() -> None:
    """``*shape`` in a reshape of something that no run holds, behind two sizes and in a tuple."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(8, 8), LIFNode()

        def forward(self, x: Tensor) -> Tensor:
            """Turn channels and rows around, and back."""
            y = x.transpose(2, 3).reshape(-1, *x.shape[3:]).sin()
            y = y.view((x.shape[0], x.shape[1], x.shape[3], -1, *x.shape[4:])).transpose(2, 3)
            return self.lif(self.fc(y))

    torch.manual_seed(0)
    plain = Net()
    expected = step(plain)
    torch.manual_seed(0)
    net = Net()
    applied = apply(net)
    assert sum(run.neurons for run in applied.report.runs) == 1
    assert_close(step(net), expected)
