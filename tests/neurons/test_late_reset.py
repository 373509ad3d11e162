"""The neuron whose reset comes a step late: its sequence is its steps, and spikes and gradient are snnTorch's."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from revedge.neurons import LateResetNode

_X = torch.randn(9, 4, 12, generator=torch.Generator().manual_seed(1)) + 0.4
_WEIGHT = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))


def _gradient(s: Tensor, leaf: Tensor) -> Tensor:
    (s * _WEIGHT).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def _require_same(spikes: list[Tensor], gradients: list[Tensor]) -> None:
    """Gradients are sums of the same terms in another order."""
    assert torch.equal(*spikes)
    assert 0.1 < float(spikes[0].mean()) < 0.9
    assert float((gradients[0] - gradients[1]).abs().max()) <= 1e-5 * float(
        gradients[1].abs().max()
    )


def test_a_sequence_is_its_steps() -> None:
    """Spikes, last membrane and gradient: back-propagation through the sequence, and autograd through the steps."""
    spikes, membranes, gradients = [], [], []
    for mode in ("m", "s"):
        node, leaf = LateResetNode(0.8, 0.5, step_mode=mode), _X.clone().requires_grad_()
        s = node(leaf) if mode == "m" else torch.stack([node(step) for step in leaf])
        gradients.append(_gradient(s, leaf))
        assert node.v is not None
        spikes.append(s.detach())
        membranes.append(node.v.detach())
    assert torch.equal(*membranes)
    _require_same(spikes, gradients)


def test_spikes_and_gradient_are_those_of_snntorch() -> None:
    """Through time: autograd over the library's own loop, and our sequence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        snntorch: Any = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    spikes, gradients = [], []
    for ours in (False, True):
        leaf = _X.clone().requires_grad_()
        leaky = snntorch.Leaky(beta=0.9, init_hidden=True)
        s = LateResetNode(0.9)(leaf) if ours else torch.stack([leaky(frame) for frame in leaf])
        gradients.append(_gradient(s, leaf))
        spikes.append(s.detach())
    _require_same(spikes, gradients)
