"""Autocast and the randomness of user modules: recompute and forward see the same, and so does plain autograd."""

import itertools

import pytest
import torch
from engine_checks import PLAIN_TOLERANCE, RUNS, X, digest, gradients_of
from torch import Tensor, nn

from revedge.engine import STRATEGIES, Branch, Feed, Unit
from revedge.neurons import LIFNode, reset_net

# Convolutions and linear layers round the same operands as autograd's, so their gradients agree as in float32. Only the
# bias of a linear layer is summed in float32 here; autograd rounds each term and the sum to 8 bits, 2**-9 each.
BIAS_TOLERANCE = 2 * 2.0**-9


def _feed(op: nn.Module | None = None) -> Feed:
    torch.manual_seed(3)
    units = [
        Unit(op=nn.Conv2d(4, 6, 3, padding=1, bias=False)),
        Unit(norm=nn.BatchNorm2d(6), neuron=LIFNode(detach_reset=True), pool=nn.MaxPool2d(2), op=op),
        Unit(norm=nn.BatchNorm2d(6), neuron=LIFNode(detach_reset=True), op=nn.Flatten()),
        Unit(op=nn.Linear(36, 5)),
    ]  # fmt: skip
    return Feed([Branch(units)])


def _plain(run: Feed, x: Tensor) -> Tensor:
    """The same modules under ordinary autograd; what a run promises to keep in float32 is cast here."""
    reset_net(run)
    y = x
    for unit in run.branch_list()[0].unit_list():
        y = y if unit.norm is None else unit.norm(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        y = y if unit.neuron is None else unit.neuron(y)
        flat = y.flatten(0, 1)
        for module in (unit.pool, unit.op):
            flat = flat if module is None else module(flat).float()
        y = flat.unflatten(0, y.shape[:2])
    return y


def _step(run: nn.Module, forward, dtype: torch.dtype | None) -> dict[str, Tensor]:
    x = X.clone().requires_grad_()
    torch.manual_seed(4)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        out = forward(x)
    out.square().sum().backward()
    return {"out": out.detach(), **gradients_of(x, run)}


@pytest.mark.parametrize("kind", RUNS)
def test_strategies_agree_under_autocast(kind):
    """The backward pass recomputes under the autocast state of the forward pass, which is over by then."""
    found = set()
    for strategy, dtype in itertools.product(STRATEGIES, [torch.bfloat16, None]):
        torch.manual_seed(3)
        run = RUNS[kind]()
        run.set_strategy(strategy, check="checksum")
        gradients = _step(run, run, dtype)
        assert gradients["out"].dtype == torch.float32
        found.add((dtype, digest(gradients)))
    assert len(found) == 2  # one with autocast, another one without


def test_autocast_equals_autograd():
    """Forward bits are those of torch's own autocast, gradients agree to bfloat16 rounding."""
    op = nn.Conv2d(6, 6, 3, padding=1, bias=False)
    run = _feed(op)
    ours = _step(run, run, torch.bfloat16)
    run.zero_grad()
    plain = _step(run, lambda x: _plain(run, x), torch.bfloat16)
    torch.testing.assert_close(ours["out"], plain["out"], rtol=0, atol=0)
    exact = run(X)
    assert not torch.equal(exact, ours["out"])
    for name, expected in plain.items():
        error = float((ours[name] - expected).norm() / expected.norm())
        bound = BIAS_TOLERANCE if name.endswith("op.bias") else PLAIN_TOLERANCE
        assert error <= bound, (name, error)


@pytest.mark.parametrize("chance", ["first", "last", "both"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_user_dropout_is_the_users_own(strategy, chance):
    """Dropout of the user's own draws what it draws under autograd, and replays it wherever it stands."""
    parts: list[nn.Module] = [nn.Conv2d(6, 6, 1, bias=False)]
    parts = [nn.Dropout(0.4), *parts] if chance in ("first", "both") else parts
    parts = [*parts, nn.Dropout(0.4)] if chance in ("last", "both") else parts
    run = _feed(nn.Sequential(*parts))
    run.set_strategy(strategy)
    ours = _step(run, run, None)
    again = run(X)
    run.zero_grad()
    plain = _step(run, lambda x: _plain(run, x), None)
    for name, expected in plain.items():
        error = float((ours[name] - expected).norm() / expected.norm())
        assert error <= PLAIN_TOLERANCE, (name, error)
    assert not torch.equal(again, ours["out"])
