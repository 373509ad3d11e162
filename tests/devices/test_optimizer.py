"""The optimizers against torch.optim, bit for bit, and without importing it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from revedge.devices import optimizer
from revedge.errors import UsageError

SHAPES = [(33, 7), (7,), (5, 3, 3, 3), (1,), (130, 17)]
RATES = [0.001, 0.01, 0.003, 0.0, 0.002]


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def _train(parameters: list[nn.Parameter], step: Callable[[float], None]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for rate in RATES:
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        step(rate)
    return [parameter.detach().clone() for parameter in parameters]


def _reference(kind: Any, **options: float) -> list[torch.Tensor]:
    parameters = _parameters()
    decayed = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    reference = kind(groups, fused=True, **options)

    def step(rate: float) -> None:
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()

    return _train(parameters, step)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [("adamw", torch.optim.AdamW, {}), ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})],
)
def test_the_same_bits_as_torch_optim(name: str, kind, options: dict) -> None:
    """Five steps with changing rates give the bits of torch.optim's fused step; biases do not decay."""
    parameters = _parameters()
    named = [(str(i), p) for i, p in enumerate(parameters)]
    found = _train(parameters, optimizer.create(name, named, weight_decay=0.05).step)
    for one, other in zip(found, _reference(kind, **options), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_updating_one_by_one_gives_the_bits_of_a_whole_step(name: str) -> None:
    """`update_now`, in another order and with the gradient passed by hand, is the same training."""
    parameters, others = _parameters(), _parameters()
    named = [(str(i), p) for i, p in enumerate(parameters)]
    expected = _train(parameters, optimizer.create(name, named, weight_decay=0.05).step)
    made = optimizer.create(name, [(str(i), p) for i, p in enumerate(others)], weight_decay=0.05)

    def step(rate: float) -> None:
        for parameter in reversed(others):
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            made.update_now(parameter, gradient, rate)

    found = _train(others, step)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_state_restores_the_rest_of_a_training(name: str) -> None:
    """Weights and state copied between two steps give the same next step."""
    first, second = _parameters(), _parameters()
    one = optimizer.create(name, [(str(i), p) for i, p in enumerate(first)], weight_decay=0.1)
    other = optimizer.create(name, [(str(i), p) for i, p in enumerate(second)], weight_decay=0.1)
    _train(first, one.step)
    with torch.no_grad():
        for target, source in zip(second, first, strict=True):
            target.copy_(source)
        for key, tensor in other.state_tensors().items():
            tensor.copy_(one.state_tensors()[key])
    after_one, after_other = _train(first, one.step), _train(second, other.step)
    assert all(torch.equal(a, b) for a, b in zip(after_one, after_other, strict=True))


def test_a_parameter_without_gradient_stays() -> None:
    """What no gradient reached is not decayed and has no state changed."""
    parameters = _parameters()
    before = parameters[0].detach().clone()
    made = optimizer.create("adamw", [("a", parameters[0])], weight_decay=0.5)
    made.step(0.1)
    assert torch.equal(parameters[0], before)
    assert float(made.state_tensors()["step.a"]) == 0


def test_an_unknown_optimizer_is_a_usage_error() -> None:
    """The names that exist are given."""
    with pytest.raises(UsageError, match="'lion' is unknown; choose one of adamw, sgd"):
        optimizer.create("lion", [], weight_decay=0.0)


def test_no_optim_no_dynamo_no_sympy_is_imported(run_python) -> None:
    """A training step in a fresh process imports nothing that costs tens of MB."""
    code = """
import json, sys, torch
from revedge.devices import loop, optimizer, trainer
net = torch.nn.Linear(3, 2)
step = optimizer.create("adamw", net.named_parameters(), weight_decay=0.1)
torch.nn.functional.cross_entropy(net(torch.ones(4, 3)), torch.ones(4).long()).backward()
step.step(0.1)
names = ("torch._dynamo", "sympy", "torch.fx.experimental.symbolic_shapes", "psutil", "matplotlib")
print(json.dumps([name for name in names if name in sys.modules]))
"""
    done = run_python("-c", code)
    assert json.loads(done.stdout) == [], done.stderr


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_fixed_parameters_have_no_state(name: str) -> None:
    """Nor do they move, whatever the decay."""
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    before = layer.weight.clone()
    made = optimizer.create(name, layer.named_parameters(), weight_decay=0.5)
    layer(torch.ones(1, 3)).sum().backward()
    made.step(0.1)
    assert torch.equal(layer.weight, before)
    assert {key.split(".", 1)[1] for key in made.state_tensors()} == {"bias"}
