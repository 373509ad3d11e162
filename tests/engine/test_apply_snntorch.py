"""`apply` on neurons of snnTorch, held over time by `OverTime`."""

import warnings

import pytest
import torch
from apply_nets import assert_close, step
from torch import Tensor, nn

from revedge.engine import OverTime, apply
from revedge.errors import UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports warn
    snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    from snntorch import surrogate  # pyright: ignore[reportMissingImports]

X = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0)) * 2

NEURONS = {
    "delayed": lambda: snntorch.Leaky(beta=0.9, reset_mechanism="zero", threshold=0.7),
    "at once": lambda: snntorch.Leaky(beta=0.8, reset_mechanism="zero", reset_delay=False),
    "hidden": lambda: snntorch.Leaky(beta=0.5, reset_mechanism="zero", init_hidden=True),
    "sigmoid": lambda: snntorch.Leaky(
        beta=0.9, reset_mechanism="zero", spike_grad=surrogate.sigmoid(slope=5)
    ),
    "atan": lambda: snntorch.Leaky(
        beta=0.9, reset_mechanism="zero", spike_grad=surrogate.atan(alpha=3.0)
    ),
    "no leak": lambda: snntorch.Leaky(beta=1.0, reset_mechanism="zero"),
}


def _inhibited(neuron):
    neuron.inhibition = True  # asked for in the constructor it warns
    return neuron


def _hooked(neuron):
    neuron.register_forward_hook(lambda *_: None)
    return neuron


LEFT = {
    "subtract": (lambda: snntorch.Leaky(beta=0.9), "reset ('subtract')"),
    "learns": (
        lambda: snntorch.Leaky(beta=0.9, reset_mechanism="zero", learn_beta=True),
        "learns beta",
    ),
    "surrogate": (
        lambda: snntorch.Leaky(
            beta=0.9, reset_mechanism="zero", spike_grad=surrogate.fast_sigmoid()
        ),
        "fast_sigmoid",
    ),
    "per neuron": (
        lambda: snntorch.Leaky(beta=torch.rand(10), reset_mechanism="zero"),
        "per neuron",
    ),
    "inhibition": (
        lambda: _inhibited(snntorch.Leaky(beta=0.9, reset_mechanism="zero")),
        "inhibition",
    ),
    "graded spikes": (
        lambda: snntorch.Leaky(beta=0.9, reset_mechanism="zero", graded_spikes_factor=0.5),
        "graded spikes",
    ),
    "no reset": (lambda: snntorch.Leaky(beta=0.9, reset_mechanism="none"), "reset ('none')"),
    "subtract at once": (
        lambda: snntorch.Leaky(beta=0.9, reset_delay=False),
        "no delay (reset_delay=False)",
    ),
    "no memory": (lambda: snntorch.Leaky(beta=0.0, reset_mechanism="zero"), "beta 0.0"),
    "fires at rest": (
        lambda: snntorch.Leaky(beta=0.9, reset_mechanism="zero", threshold=-0.1),
        "threshold -0.1",
    ),
    "hooked": (lambda: _hooked(snntorch.Leaky(beta=0.9, reset_mechanism="zero")), "hooks"),
    "synaptic": (lambda: snntorch.Lapicque(beta=0.9, reset_mechanism="zero"), "Lapicque"),
}


def make(neuron) -> nn.Module:
    """Two layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 10),
        OverTime(neuron()),
        nn.Linear(10, 10),
        OverTime(neuron()),
        nn.Linear(10, 4),
    )


def no_reset(net: nn.Module) -> None:
    """OverTime starts from rest by itself."""


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_are_the_same(name):
    """Leaky with reset to zero, in all its spellings; snnTorch's spike is strict, and ours takes that over."""
    expected = step(make(NEURONS[name]), X, no_reset)
    net = make(NEURONS[name])
    applied = apply(net, "keep-spikes")
    found = step(net, X, no_reset)
    assert applied.report.left == ()
    assert sum(run.neurons for run in applied.report.runs) == 2
    assert_close(found, expected)
    assert float(expected["0.weight"].norm()) > 0


def test_a_membrane_at_the_threshold_does_not_fire():
    """h == threshold is no spike in snnTorch."""
    net = nn.Sequential(OverTime(snntorch.Leaky(beta=1.0, threshold=0.5, reset_mechanism="zero")))
    x = torch.tensor([0.5, 0.0, 0.25]).view(3, 1, 1)
    plain = net(x)
    apply(net)
    assert torch.equal(net(x), plain)
    assert plain.flatten().tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_is_left_and_named(name):
    """Other resets, surrogates and neurons run as they did."""
    neuron, why = LEFT[name]
    expected = step(make(neuron), X, no_reset)
    net = make(neuron)
    applied = apply(net)
    assert applied.report.runs == ()
    assert why in str(applied)
    found = step(net, X, no_reset)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_over_time_cannot_hold_is_named():
    """A neuron beside it takes the whole recording as one step, which is the user's; one with membranes is refused."""
    net = nn.Sequential(nn.Linear(8, 10), snntorch.Leaky(beta=0.9, init_hidden=True))
    assert "it runs step by step; hold the loop over time" in str(apply(net))
    both = OverTime(snntorch.Leaky(beta=0.9, init_hidden=True, output=True))
    with pytest.raises(UsageError, match="OverTime returns spikes only"):
        both(X)


class Loop(nn.Module):
    """The loop over time as snnTorch's tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(8, 10), snntorch.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of all steps."""
        mem, spikes = self.lif.reset_mem(), []
        for t in range(x.shape[0]):
            s, mem = self.lif(self.fc(x[t]), mem)
            spikes.append(s)
        return torch.stack(spikes)


def test_a_loop_in_forward_is_left_alone():
    """It cannot be traced; the report names it, and it runs as it did."""
    torch.manual_seed(0)
    net = Loop()
    expected = step(net, X, no_reset)
    applied = apply(net)
    assert applied.report.runs == ()
    assert "inside Loop, which cannot be traced" in str(applied)
    found = step(net, X, no_reset)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
