"""The inference steps: scriptable, and the values of the differentiable ones."""

import pytest
import torch

from revedge.kernels import NeuronParams, ReversibleParams
from revedge.neurons import functional


@pytest.mark.parametrize("v_reset", [0.0, 0.2, None])
def test_neuron_step(v_reset: float | None) -> None:
    """Same spikes and membranes as the differentiable step."""
    p = NeuronParams(decay=0.4, gain=0.6, bias=0.4 * (v_reset or 0.0), v_reset=v_reset)
    x, v = torch.randn(50), torch.randn(50)
    expected = functional.neuron_step(x, v, p)
    actual = functional.neuron_step_inference(x, v, p.decay, p.gain, p.bias, 1.0, v_reset)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_reversible_step() -> None:
    """Same output and state as the differentiable step."""
    rp = ReversibleParams(groups=3, tau=1.6)
    x, v = torch.randn(4, 9), torch.randn(4, 9)
    expected = functional.reversible_step(x, v, rp)
    actual = functional.reversible_step_inference(x, v, 3, 1 / 1.6, 0.1, 1.0, 1.0, 0.0, -1)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_inference_steps_can_be_scripted() -> None:
    """TorchScript takes both as they are."""
    x, v = torch.randn(4, 6), torch.randn(4, 6)
    neuron = torch.jit.script(functional.neuron_step_inference)
    for v_reset in (0.3, None):
        arguments = (x, v, 0.5, 0.5, 0.0, 1.0, v_reset)
        expected = functional.neuron_step_inference(*arguments)
        for a, b in zip(neuron(*arguments), expected, strict=True):
            assert torch.equal(a, b)
    reversible = torch.jit.script(functional.reversible_step_inference)
    arguments = (x, v, 3, 0.5, 0.1, 1.0, 1.0, 0.0, -1)
    expected = functional.reversible_step_inference(*arguments)
    for a, b in zip(reversible(*arguments), expected, strict=True):
        assert torch.equal(a, b)
