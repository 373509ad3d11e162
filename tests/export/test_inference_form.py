"""The inference form: same function, nothing left of training, the network untouched."""

import pytest
import torch
from torch import nn
from zoo import KINDS, digest, events

from revedge.engine import Branch
from revedge.errors import ExportError
from revedge.export.blocks import Affine, BranchStep, CouplingStep, ResidualStep
from revedge.export.folding import can_fold, fold
from revedge.export.inference import inference_form


@pytest.mark.parametrize(
    "op",
    [
        nn.Conv2d(3, 6, 3, bias=False),
        nn.Conv2d(3, 6, 3, groups=3),
        nn.Conv1d(3, 6, 3),
        nn.Linear(4, 6),
    ],
)
def test_folded_operator_is_operator_then_norm(op: nn.Module) -> None:
    """In float64 the folded operator and the pair agree to rounding of the float32 weights."""
    torch.manual_seed(0)
    norm: nn.Module = nn.BatchNorm2d(6) if isinstance(op, nn.Conv2d) else nn.BatchNorm1d(6)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.1, 2)
    shape = {nn.Conv2d: (5, 3, 7, 7), nn.Conv1d: (5, 3, 9), nn.Linear: (5, 4)}[type(op)]
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        assert can_fold(op, norm)
        found = fold(op, norm).double()(x)
        expected = norm.double().eval()(op.double()(x))
    # Each of at most 27 products and the bias is off by half an ulp of a float32 weight: 28 * 2**-24 * max|x w|.
    assert float((found - expected).abs().max()) < 28 * 2.0**-24 * 20


def test_folds_wherever_an_operator_precedes() -> None:
    """Only a normalization that reads a stream or a sum stays; it stays as scale and shift."""
    left = {
        kind: sum(isinstance(m, Affine) for m in inference_form(make()).modules())
        for kind, make in KINDS.items()
    }
    assert {kind: count for kind, count in left.items() if count} == {
        "normalization on a stream": 1,
        "sum of branches that open with a norm": 2,
        "forks": 1,
    }


def test_nothing_of_training_is_left() -> None:
    """No gradient, no training mode, no batch norm, no dropout, no module that saves an autograd function."""
    form = inference_form(KINDS["dense head"]().train())
    assert not any(p.requires_grad for p in form.parameters())
    assert not any(m.training for m in form.modules())
    for module in form.modules():
        assert not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.Dropout)
        assert type(module).__module__.startswith(("revedge.export", "torch.nn"))


def test_a_network_in_training_is_not_touched() -> None:
    """Mode, values, gradients and statistics are those of before, and later training does not move the copy."""
    net = KINDS["coupling"]().train()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = digest(net)
    form = inference_form(net)
    assert digest(net) == before
    x, states = torch.from_numpy(events(1, 2, 0)[0]), net.initial_states(2)
    first = form(x, states)[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert torch.equal(form(x, states)[0], first)


@pytest.mark.parametrize(
    "kind", ["residual off the grid", "coupling, two blocks", "pool before the grid"]
)
def test_streams_lie_on_the_grid(kind: str) -> None:
    """Rounding happens where training rounds: every summand of a stream is a multiple of 2**-14, and not of 2**-13."""
    net = KINDS[kind]()
    form = inference_form(net)
    seen: list[torch.Tensor] = []
    for module in form.modules():
        if isinstance(module, BranchStep) and not isinstance(module.close, nn.Identity):
            module.register_forward_hook(lambda _, __, out: seen.append(out[0]))
        if isinstance(module, CouplingStep | ResidualStep):
            module.register_forward_hook(lambda _, __, out: seen.append(out[0]))
    form(torch.from_numpy(events(1, 2, 0)[0]), net.initial_states(2))
    on_grid = sum(b.norm is not None for b in net.modules() if isinstance(b, Branch))
    assert len(seen) == on_grid + 1
    for value in seen:
        assert torch.equal(value * 2**14, torch.round(value * 2**14))
        assert not torch.equal(value * 2**13, torch.round(value * 2**13))


def test_norm_without_statistics_is_refused() -> None:
    """The message names the option that gives it statistics."""
    net = KINDS["if hard"]()
    norm = net.get_submodule("body.0.branches.0.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = None
    with pytest.raises(ExportError, match="track_running_stats=True"):
        inference_form(net)
