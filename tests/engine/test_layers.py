"""Layers without parameters: values, and hand-written gradients against float64 autograd."""

import pytest
import torch
from torch import nn

from revedge.engine import GlobalMean, SpikeAttention, Twice, Voting
from revedge.engine.vjp import Gradients, is_known, module_backward
from revedge.errors import UsageError

LAYERS = {
    "attention, few tokens": (SpikeAttention(2), (3, 24, 1, 3)),  # d = 4 > L = 3
    "attention, many tokens": (SpikeAttention(2, scale=0.5), (3, 24, 3, 5)),
    "attention, one head": (SpikeAttention(1), (2, 9, 2, 2)),
    "twice": (Twice(), (3, 4, 2, 5)),
    "voting": (Voting(4), (3, 12)),
    "mean": (GlobalMean(), (3, 4, 2, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_is_that_of_autograd(name):
    """In float64, on real values, to 1e-12: a wrong factor or transposition is larger by far."""
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    g = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, x, g)
    found = module_backward(layer, x.detach(), g, Gradients(), need_input=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert module_backward(layer, x.detach(), g, Gradients(), need_input=False) is None
    assert is_known(layer)


OPERATORS = {
    "zeros": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), dilation=2, groups=2),
    "padding by name": lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False),
    "reflected": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(168, 5)),
    "a sequence": lambda: nn.Sequential(nn.Conv2d(4, 6, 1), nn.AvgPool2d(2, ceil_mode=True)),
    "dilated pool": lambda: nn.MaxPool2d(2, dilation=2),
    "pool up to the border": lambda: nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    "mean without its border": lambda: nn.AvgPool2d((3, 2), padding=1, count_include_pad=False),
    "mean, stepped and divided": lambda: nn.AvgPool2d(3, stride=1, divisor_override=5),
}


@pytest.mark.parametrize("need_input", [True, False])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_and_pools_have_the_gradients_of_autograd(name, need_input):
    """Those of the weights, whether the input's is wanted or not; as above in float64, to 1e-12."""
    torch.manual_seed(0)
    layer = OPERATORS[name]().double()
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    g = torch.randn_like(out)
    expected = torch.autograd.grad(out, [x, *layer.parameters()], g)
    gradients = Gradients()
    found = module_backward(layer, x.detach(), g, gradients, need_input=need_input)
    assert (found is not None) == need_input
    every = [*([] if found is None else [found]), *(gradients[p] for p in layer.parameters())]
    for one, other in zip(every, expected[not need_input :], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class _Constant(nn.Module):
    """Gives out its weight, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.weight.expand(len(x), 3)


def test_an_input_that_is_not_read_has_a_gradient_of_zeros():
    """There is a unit before it that waits for one."""
    layer, gradients = _Constant(), Gradients()
    found = module_backward(layer, torch.ones(2, 4), torch.ones(2, 3), gradients, need_input=True)
    assert found is not None
    assert torch.equal(found, torch.zeros(2, 4))
    assert torch.equal(gradients[layer.weight], torch.full((3,), 2.0))


def test_gradients_of_a_layer_that_is_used_twice_add_up():
    """Of the same input and gradient, so that the sum is exact."""
    layer, gradients = nn.Conv2d(4, 2, 3), Gradients()
    x, g = torch.randn(2, 4, 5, 5), torch.randn(2, 2, 3, 3)
    module_backward(layer, x, g, gradients, need_input=False)
    once = {p: gradient.clone() for p, gradient in gradients.items()}
    module_backward(layer, x, g, gradients, need_input=False)
    assert len(once) == 2
    assert all(torch.equal(gradients[p], 2 * gradient) for p, gradient in once.items())


def test_weights_that_are_fixed_get_no_gradient():
    """Of a layer whose bias learns, the bias alone."""
    for layer in (nn.Conv2d(4, 2, 3), nn.Sequential(nn.Flatten(), nn.Linear(100, 2))):
        fixed, learns = layer.parameters()
        fixed.requires_grad_(False)
        x, gradients = torch.randn(2, 4, 5, 5), Gradients()
        g = torch.ones_like(layer(x)).detach()
        assert module_backward(layer, x, g, gradients, need_input=False) is None
        assert list(gradients) == [learns]
        torch.testing.assert_close(gradients[learns], g.transpose(0, 1).flatten(1).sum(1))


def _written_out(x, heads, scale):
    """(q k^T) v of one plane ``[3C, L]``, head by head, token by token."""
    q, k, v = x.chunk(3)
    width = len(q) // heads
    out = torch.zeros_like(q)
    for h in range(heads):
        rows = slice(h * width, (h + 1) * width)
        for i in range(x.shape[1]):
            for j in range(x.shape[1]):
                weight = (q[rows, i] * k[rows, j]).sum()
                out[rows, i] += weight * v[rows, j]
    return out * scale


@pytest.mark.parametrize("side", [1, 2, 4])
def test_attention_on_spikes_is_exact_in_either_order(side):
    """The published order, written out in loops, gives the same bits as the cheaper one."""
    torch.manual_seed(side)
    spikes = (torch.rand(2, 3 * 12, side, side) < 0.4).float()
    out = SpikeAttention(2)(spikes)
    for plane, found in zip(spikes, out, strict=True):
        expected = _written_out(plane.flatten(1), 2, 0.125).view(found.shape)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert float(out.max()) > 0


def test_attention_counts_in_float32_under_autocast():
    """Sums above 256, which bfloat16 cannot hold, are the same bits with autocast and without; so are gradients."""
    torch.manual_seed(0)
    attention, spikes = SpikeAttention(1), (torch.rand(1, 96, 8, 8) < 0.7).float()
    out = attention(spikes)
    assert float(out.max()) / attention.scale > 512
    g = torch.randn_like(out)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(attention(spikes), out, rtol=0, atol=0)
        lowered = attention.vjp(spikes, g)
    torch.testing.assert_close(lowered, attention.vjp(spikes, g), rtol=0, atol=0)


def test_layers_work_on_an_empty_batch():
    """Shapes are found by sending nothing through."""
    for layer, shape in LAYERS.values():
        full = layer(torch.zeros(shape))
        assert layer(torch.zeros(0, *shape[1:])).shape == (0, *full.shape[1:])


def test_sizes_that_cannot_be_are_named():
    """Heads that do not divide the width, and counts below 1."""
    with pytest.raises(UsageError, match="multiple of 15"):
        SpikeAttention(5)(torch.zeros(1, 24, 2, 2))
    with pytest.raises(UsageError, match="heads=0"):
        SpikeAttention(0)
    with pytest.raises(UsageError, match="group=0"):
        Voting(0)
