"""The hand-written backward passes equal float64 autograd of the one-step definition.

Both run in float64, where the forward is the same but for roundings of 1e-16: any wrong term shows
at once. 1e-10 leaves room for T products of numbers of order 1.
"""

import pytest
import torch
from kernel_checks import name_of, neuron_variants
from torch import Tensor

from revedge.kernels import NeuronParams, ReversibleParams, reference
from revedge.neurons import functional

TOLERANCE = 1e-10


def as_float32(p: NeuronParams) -> NeuronParams:
    """Return ``p`` with every number rounded, as the kernels use it."""
    return NeuronParams.from_floats(torch.tensor(p.as_floats()).tolist())


def assert_close(actual: Tensor, expected: Tensor | None) -> None:
    assert expected is not None
    scale = max(1e-3, float(expected.abs().max()))
    assert float((actual - expected).abs().max()) < TOLERANCE * scale


@pytest.mark.parametrize("p", [as_float32(p) for p in neuron_variants()], ids=name_of)
def test_neuron(p: NeuronParams) -> None:
    """Gradients of input, first state and leak, with gradients of spikes and last state given."""
    torch.manual_seed(1)
    x = (torch.randn(6, 200, dtype=torch.float64) * 1.5).requires_grad_()
    v0 = torch.randn(200, dtype=torch.float64, requires_grad=True)
    leak = torch.zeros(200, dtype=torch.float64, requires_grad=True)  # offset of the leak
    g_s, g_v = torch.randn_like(x), torch.randn_like(v0)
    v, spikes = v0, []
    for x_t in x:
        dh_dk = p.leak_x * x_t + p.leak_v * v + p.leak_1
        h = functional.charge(x_t, v, p.decay, p.gain, p.bias) + leak * dh_dk
        s, v = functional.fire_and_reset(
            h, p.v_threshold, p.v_reset, p.detach_reset, functional.Surrogate(p.surrogate, p.alpha)
        )
        spikes.append(s)
    s = torch.stack(spikes)
    ((s * g_s).sum() + (v * g_v).sum()).backward()

    with torch.no_grad():
        s_kernel, v_kernel = reference.neuron_forward(x, v0, p)
        g_v0, g_leak = reference.neuron_backward_(x, v0, g_s, g_v, p)
    assert torch.equal(s_kernel, s)
    assert_close(v_kernel, v.detach())
    assert_close(g_s, x.grad)
    assert_close(g_v0, v0.grad)
    if p.learns_leak:
        assert_close(g_leak, leak.grad)


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid", "rectangle", "triangle"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("groups", "shape"), [(2, (5, 3, 6)), (3, (4, 2, 15)), (4, (6, 2, 12))])
def test_reversible(groups: int, shape: tuple[int, ...], detach: bool, surrogate: str) -> None:
    """The reversible neuron's gradient, rebuilt from Y only, for 2, 3, 4 groups and odd widths."""
    torch.manual_seed(2)
    rp = ReversibleParams(
        groups=groups,
        beta=0.5,
        alpha=0.25,
        tau=4.0,
        v_threshold=0.75,
        v_reset=-0.125,
        detach_reset=detach,
        surrogate=surrogate,
    )
    x = torch.round(torch.randn(shape, dtype=torch.float64) * 2**14) / 2**14
    x.requires_grad_()
    g = torch.randn_like(x)
    v = torch.zeros(shape[1:], dtype=torch.float64)
    outputs = []
    for x_t in x:
        y, v = functional.reversible_step(x_t, v, rp)
        outputs.append(y)
    y = torch.stack(outputs)
    (y * g).sum().backward()
    with torch.no_grad():
        rebuilt = reference.reversible_backward_(y, g, rp, -1)
    assert torch.equal(rebuilt, x)
    assert_close(g, x.grad)
