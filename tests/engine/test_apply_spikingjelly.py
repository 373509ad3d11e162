"""`apply` on models of SpikingJelly's neurons and layers, in multi-step mode."""

import copy
import warnings
from typing import Any

import pytest
import torch
from apply_nets import X, assert_close, bits, step
from torch import Tensor, nn

from revedge.engine import STRATEGIES, apply
from revedge.errors import UsageError
from revedge.neurons import reset_net

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports warn
    pytest.importorskip(
        "spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed"
    )
    from spikingjelly.activation_based import (  # pyright: ignore[reportMissingImports]
        functional,
        layer,
        neuron,
        surrogate,
    )

NEURONS = {
    "if-hard": lambda: neuron.IFNode(surrogate_function=surrogate.ATan()),
    "if-soft": lambda: neuron.IFNode(v_reset=None, surrogate_function=surrogate.Sigmoid(alpha=3.0)),
    "lif": lambda: neuron.LIFNode(
        tau=1.7, v_threshold=0.6, surrogate_function=surrogate.ATan(alpha=1.5)
    ),
    "lif-rest": lambda: neuron.LIFNode(
        tau=3.0, v_reset=-0.25, decay_input=False, detach_reset=True
    ),
    "lif-soft": lambda: neuron.LIFNode(v_reset=None, v_threshold=0.5, decay_input=False),
    "lif-triangle": lambda: neuron.LIFNode(
        surrogate_function=surrogate.PiecewiseQuadratic(alpha=0.8)
    ),
    "plif": lambda: neuron.ParametricLIFNode(init_tau=2.5, detach_reset=True),
    "plif-no-input": lambda: neuron.ParametricLIFNode(decay_input=False, v_reset=None),
}


class Net(nn.Module):
    """A residual net of layers with a step mode, containers and plain modules in turn."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.stem = layer.SeqToANNContainer(
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        )
        self.blocks = nn.ModuleList([self.block(make) for _ in range(2)])
        self.pool = layer.MaxPool2d(2)
        self.head = nn.Sequential(
            make(), layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(6, 5)
        )

    def block(self, make: Any) -> nn.Module:
        """neuron, convolution, norm, twice."""
        parts = [
            part
            for _ in range(2)
            for part in (make(), layer.Conv2d(6, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6))
        ]
        return nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, 5]``."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) + x
        return self.head(self.pool(x)).mean(0)


def make(name: str = "lif") -> Any:
    """The same weights at every call."""
    torch.manual_seed(0)
    net = Net(NEURONS[name])
    functional.set_step_mode(net, "m")
    return net.train()


def sj_step(net: nn.Module) -> dict[str, Tensor]:
    """One training step after SpikingJelly's own reset."""
    return step(net, X, functional.reset_net)


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("strategy", ["store", "keep-conv", "keep-spikes"])
def test_neurons_are_the_same(name, strategy):
    """Every parameter of IF, LIF and parametric LIF means here what it means there."""
    expected = sj_step(make(name))
    net = make(name)
    applied = apply(net, strategy)
    found = sj_step(net)
    assert applied.report.left == ()
    assert sum(run.neurons for run in applied.report.runs) == 5
    assert_close(found, expected)
    assert float(expected["blocks.0.1.weight"].norm()) > 0  # there are spikes to learn from


def test_every_strategy_gives_the_same_bits():
    """Gradients and running statistics, with and without the grid."""
    for grid in (False, True):
        found = set()
        for strategy in STRATEGIES:
            net = make()
            apply(net, strategy, grid=grid, check="checksum")
            found.add(bits(net, sj_step(net)))
        assert len(found) == 1
        kinds = {run.kind for run in apply(make(), grid=grid).report.runs}
        assert ("residual" in kinds) == grid


def test_the_users_neurons_stay_in_place():
    """State is SpikingJelly's: reset_net is needed and enough, parameters learn, undo gives everything back."""
    net = make("plif")
    applied = apply(net)
    sj_step(net)
    with pytest.raises(UsageError, match="call reset_net"):
        net(X)
    with torch.no_grad():
        net.head[0].w.fill_(2.0)
    changed = sj_step(net)
    applied.undo()
    assert all(m.v == m.v_reset for m in net.modules() if isinstance(m, neuron.BaseNode))
    assert_close(changed, sj_step(net))
    functional.reset_net(net)
    twin = copy.deepcopy(net)
    apply(net)
    assert_close(sj_step(net), sj_step(twin))


def test_step_mode_is_followed():
    """In single-step mode the net is left alone, in multi-step mode it is not; no second apply is needed."""
    net = make()
    applied = apply(net)
    functional.set_step_mode(net, "s")
    net.stem = nn.Sequential(*net.stem)
    functional.reset_net(net)
    out = net(X[0])
    assert out.shape == (5,)
    functional.set_step_mode(net, "m")
    net.stem = layer.SeqToANNContainer(*net.stem)
    sj_step(net)
    assert sum(run.neurons for run in applied.report.runs) == 5


LEFT = {
    "another neuron": (lambda: neuron.QIFNode(step_mode="m"), "neuron QIFNode is not known"),
    "another surrogate": (
        lambda: neuron.LIFNode(surrogate_function=surrogate.Erf(), step_mode="m"),
        "surrogate Erf is not known",
    ),
    "no spikes": (
        lambda: neuron.LIFNode(surrogate_function=surrogate.ATan(spiking=False), step_mode="m"),
        "not spiking",
    ),
    "single step": (lambda: layer.MultiStepContainer(neuron.LIFNode()), "MultiStepContainer"),
    "membranes": (lambda: neuron.LIFNode(step_mode="m", store_v_seq=True), "store_v_seq"),
    "own subclass": (lambda: type("Mine", (neuron.LIFNode,), {})(step_mode="m"), "subclass"),
}


def _of_channels() -> nn.Module:
    node = neuron.ParametricLIFNode(step_mode="m")
    node.w = nn.Parameter(torch.linspace(-1.0, 1.0, 8))
    return node


def _container() -> nn.Module:
    """A container that gives its neuron planes, which that takes for time steps."""
    node = neuron.IFNode()
    container = layer.SeqToANNContainer(node)
    node.step_mode = "m"
    return container


LEFT |= {
    "a leak per column": (_of_channels, "something else than one time constant"),
    "a neuron that is given planes": (
        _container,
        "it holds a module that wants [T, B, ...]",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_is_left_and_named(name):
    """Such a neuron runs under autograd, exactly as before, between runs that are not disturbed."""
    make_odd, why = LEFT[name]

    def build() -> nn.Module:
        torch.manual_seed(0)
        first = [
            layer.Conv2d(4, 6, 3, padding=1, bias=False),
            layer.BatchNorm2d(6),
            neuron.LIFNode(),
        ]
        last = [
            layer.Conv2d(6, 5, 3, padding=1, bias=False),
            layer.BatchNorm2d(5),
            neuron.LIFNode(),
            layer.Flatten(),
        ]
        for module in (*first, *last):
            module.step_mode = "m"
        return nn.Sequential(*first, make_odd(), *last)

    net = build()
    applied = apply(net, "keep-spikes")
    assert sum(run.neurons for run in applied.report.runs) == 2
    assert len(applied.report.left) == 1
    assert why in str(applied)
    assert_close(sj_step(net), sj_step(build()))


LAYERS_LEFT = {
    "a flattening that leaves two axes": lambda: layer.Flatten(2, step_mode="m"),
    "one step by step that leaves two": lambda: layer.Flatten(3, step_mode="s"),
    "dropout of a mask per step": lambda: layer.Dropout(0.3),
}


@pytest.mark.parametrize("name", LAYERS_LEFT)
def test_layers_that_a_run_cannot_hold_run_as_before(name):
    """They part two runs, and draw what they drew."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        width = 8 if "dropout" in name else 64
        parts = [neuron.LIFNode(), neuron.LIFNode()]
        functional.set_step_mode(nn.ModuleList(parts), "m")
        return nn.Sequential(parts[0], LAYERS_LEFT[name](), nn.Linear(width, 3), parts[1])

    net = build()
    applied = apply(net)
    assert [run.neurons for run in applied.report.runs] == [1, 1]
    assert_close(sj_step(net), sj_step(build()))


def test_dropout_of_one_mask_for_all_steps():
    """SpikingJelly's dropout keeps its law: one mask per sequence, scaled; the report says that it draws anew."""
    net = nn.Sequential(
        neuron.IFNode(step_mode="m"),
        layer.Dropout(0.3, step_mode="m"),
        layer.Linear(50, 50, bias=False),
    )
    net[2].load_state_dict({"weight": torch.eye(50)})
    applied = apply(net)
    assert "other random numbers" in str(applied)
    masks = []
    for _ in range(40):
        functional.reset_net(net)
        out = net(torch.full((2, 3, 50), 1.5)).detach()
        assert torch.equal(out[0], out[1])
        masks.append(out[0])
    values = torch.stack(masks)
    torch.testing.assert_close(values.unique(), torch.tensor([0.0, 1 / 0.7]))
    # 6000 draws: the share that is kept deviates by less than 5 standard deviations of sqrt(0.21 / 6000).
    assert abs(float((values > 0).float().mean()) - 0.7) < 0.03
    net.eval()
    functional.reset_net(net)
    assert torch.equal(net(torch.full((2, 3, 50), 1.5)), torch.ones(2, 3, 50))


def test_our_reset_net_brings_its_neurons_to_rest():
    """Whichever `reset_net` is called, the next sequence starts from rest, with `apply` and without."""
    net = neuron.LIFNode(step_mode="m")
    first = net(X)
    reset_net(net)
    assert torch.equal(net(X), first)
    reset_net(net)
    assert net.v == 0.0
