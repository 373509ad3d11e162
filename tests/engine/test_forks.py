"""Forks: blocks that keep the spikes before their shortcut, and nothing that could be subtracted."""

import pytest
import torch
from engine_checks import PLAIN_TOLERANCE, digest, gradients_of, kept_bytes
from torch import Tensor, nn

from revedge.engine import STRATEGIES, Branch, Fork, Forks, Unit
from revedge.engine.run import Given
from revedge.errors import ReversibilityError, UsageError
from revedge.neurons import BaseNode, IFNode, LIFNode, ReversibleNode

X = (
    torch.round(torch.randn(3, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 2**14)
    / 2**14
)


def _arm(
    c_in: int = 4, c_out: int = 4, stride: int = 1, *, norm: bool = True, units: int = 2
) -> Branch:
    ops = [nn.Conv2d(c_in, c_out, 3, stride, 1)]
    ops += [nn.Conv2d(c_out, c_out, 3, 1, 1) for _ in range(units - 1)]
    rest = [
        Unit(norm=nn.BatchNorm2d(c_out), neuron=IFNode(detach_reset=True), op=op) for op in ops[1:]
    ]
    return Branch([Unit(op=ops[0]), *rest], norm=nn.BatchNorm2d(c_out) if norm else None)


def _head(neuron: type[BaseNode] = IFNode) -> Unit:
    return Unit(neuron=neuron(detach_reset=True))


def _forks(count: int = 4, *, norm: bool = True) -> Forks:
    torch.manual_seed(3)
    forks = Forks([Fork([_arm(norm=norm)], head=_head(), identity=True) for _ in range(count)])
    for module in forks.modules():
        if isinstance(module, nn.BatchNorm2d):  # lively: no gradient is empty
            nn.init.uniform_(module.weight, 1.0, 2.0)
            nn.init.uniform_(module.bias, 0.2, 0.8)
    return forks


def _backward(
    run: Forks, strategy: str, x: Tensor = X, check: str = "checksum"
) -> dict[str, Tensor]:
    run.set_strategy(strategy, check=check)
    x = x.clone().requires_grad_()
    (run(x) ** 2).sum().backward()
    return gradients_of(x, run)


KINDS = {
    "identity": lambda: _forks().fork_list(),
    "no norm behind the arms": lambda: _forks(norm=False).fork_list(),
    "two arms": lambda: [Fork([_arm(), _arm(units=1)], head=_head()), *_forks(1).fork_list()],
    "three arms and identity": lambda: [
        Fork([_arm(), _arm(norm=False), _arm(units=1)], head=_head(), identity=True),
        *_forks(2).fork_list(),
    ],
    "halving": lambda: [
        Fork([_arm(4, 6, 2), _arm(4, 6, 2, units=1)], head=_head(LIFNode)),
        Fork([_arm(6, 6)], head=_head(), identity=True),
    ],
    "norm in the head": lambda: [
        Fork([_arm(norm=False)], head=Unit(norm=nn.BatchNorm2d(4), neuron=LIFNode()), identity=True)
        for _ in range(3)
    ],
    "spikes come in": lambda: [Fork([_arm()], head=None, identity=True), *_forks(2).fork_list()],
    "dropout": lambda: [
        Fork(
            [Branch([Unit(dropout=0.4, op=nn.Conv2d(4, 4, 1))], norm=nn.BatchNorm2d(4)), _arm()],
            head=_head(),
        ),
        *_forks(2).fork_list(),
    ],
    "reversible": lambda: [
        Fork(
            [_arm()],
            head=Unit(neuron=ReversibleNode(groups=2, dim=2, detach_reset=True)),
            identity=True,
        )
        for _ in range(3)
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_strategies_give_the_same_bits(kind):
    """Of every gradient, that of the input included, with the checksum of every stream compared."""
    x = (X > 0).float() if kind == "spikes come in" else X
    digests = set()
    for strategy in STRATEGIES:
        torch.manual_seed(3)
        run = Forks(KINDS[kind]())
        torch.manual_seed(4)
        found = _backward(run, strategy, x)
        assert all(float(g.abs().sum()) > 0 for name, g in found.items() if "bias" not in name)
        digests.add(digest(found))
    assert len(digests) == 1


def test_kept_bytes_are_exact():
    """What lies on the tape of four forks, in units of one stream of 3*2*4*6*6 floats."""
    run, one = _forks(4), X.numel() * 4
    bit = X.numel() // 8
    expected = {
        "store": 4 * (4 * one)
        + 3 * one,  # two spike tensors, two convolution outputs; the streams between
        "keep-conv": 4 * (2 * one + bit),
        "keep-spikes": 4 * (2 * bit),
        "reverse": 4 * bit,
    }
    for strategy, size in expected.items():
        run.set_strategy(strategy)
        _, tape = run.run_forward(Given(X, free=False), keep=True)
        assert kept_bytes(tape) == size, strategy
    run = _forks(4, norm=False)  # a stream is kept where it would take a convolution
    run.set_strategy("keep-conv")
    _, tape = run.run_forward(Given(X, free=False), keep=True)
    assert kept_bytes(tape) == 4 * (one + bit) + 3 * one


def test_frozen_batch_norm():
    """In eval mode the gradient is that of autograd over the same map."""
    run = _forks(2).eval()
    found = _backward(run, "reverse")
    assert digest(found) == digest(_backward_again(run, "store"))
    x = X.clone().requires_grad_()
    run.zero_grad()
    (_by_autograd(run, x) ** 2).sum().backward()
    for name, expected in gradients_of(x, run).items():
        assert float((found[name] - expected).norm() / expected.norm()) <= PLAIN_TOLERANCE, name


def _backward_again(run: Forks, strategy: str) -> dict[str, Tensor]:
    run.zero_grad()
    return _backward(run, strategy)


def _by_autograd(run: Forks, x: Tensor) -> Tensor:
    """Forks of heads without norm and arms of two units, in eval mode, by torch's own layers."""

    def fire(unit: Unit, y: Tensor) -> Tensor:
        assert unit.neuron is not None
        v, spikes = torch.zeros_like(y[0]), []
        for y_t in y:
            s, v = unit.neuron.step(y_t, v)
            spikes.append(s)
        return torch.stack(spikes)

    def folded(layer: nn.Module | None, y: Tensor) -> Tensor:
        assert layer is not None
        return layer(y.flatten(0, 1)).unflatten(0, y.shape[:2])

    for fork in run.fork_list():
        assert fork.head is not None
        s, arm = fire(fork.head, x), fork.arm_list()[0]
        first, second = arm.unit_list()
        y = folded(first.op, s)
        y = folded(arm.norm, folded(second.op, fire(second, folded(second.norm, y))))
        x = s + y + (torch.round(y * 2**14) / 2**14 - y).detach()
    return x


def test_checksum_names_the_fork():
    """A weight that changes behind autograd's back is found in the fork behind it."""
    run = _forks(3)
    run.set_strategy("reverse", check="checksum")
    loss = run(X.clone().requires_grad_()).sum()
    op = run.fork_list()[1].arm_list()[0].unit_list()[0].op
    assert isinstance(op, nn.Conv2d)
    op.weight.data.mul_(1.5)
    with pytest.raises(ReversibilityError, match="fork 2"):
        loss.backward()


def test_what_cannot_be_a_fork_is_refused():
    """Arms with a neuron in front, heads with an operator, and a second fork without a head."""
    late = Branch([Unit(neuron=IFNode(), op=nn.Conv2d(4, 4, 1))])
    with pytest.raises(UsageError, match="its head is their neuron"):
        Fork([late], head=_head())
    with pytest.raises(UsageError, match="its head is their neuron"):
        Fork([], head=_head())
    with pytest.raises(UsageError, match="no more"):
        Fork([_arm()], head=Unit(neuron=IFNode(), op=nn.Conv2d(4, 4, 1)))
    with pytest.raises(UsageError, match="all but the first"):
        Forks([Fork([_arm()], head=_head()), Fork([_arm()], head=None)])
    with pytest.raises(UsageError, match="need a Fork"):
        Forks([])
