"""Second derivatives through runs: refused, and right in the plain forward pass that the error names."""

import pytest
import torch
from engine_checks import NETS, RUNS, X, fresh_net, net_input
from torch import Tensor

from revedge.engine import STRATEGIES
from revedge.errors import UsageError
from revedge.models.plain import plain_forward


@pytest.mark.parametrize("kind", RUNS)
def test_runs_refuse_create_graph(kind):
    """Behind a linear loss too, where the gradient would come without a graph and a penalty on it train nothing."""
    run = RUNS[kind]()
    x = X.clone().requires_grad_()
    for strategy in STRATEGIES:
        run.set_strategy(strategy)
        with pytest.raises(UsageError, match=r"create_graph=True .*plain_forward\(net, x\)"):
            torch.autograd.grad(run(x).sum(), x, create_graph=True)
    run(x).sum().backward()
    assert x.grad is not None


def test_the_plain_forward_pass_has_them():
    """A penalty on the gradient of a linear loss reaches the weights there; nets refuse it."""
    config = NETS["vgg"]
    net = fresh_net(config, "reverse").train()

    def penalty(logits: Tensor, x: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return g.square().sum()

    x = net_input(config).requires_grad_()
    with pytest.raises(UsageError, match="second derivatives"):
        penalty(net(x), x)
    found = torch.autograd.grad(penalty(plain_forward(net, x), x), next(net.parameters()))
    assert float(found[0].abs().sum()) > 0
