"""What papers say about their nets beyond the number of parameters: neurons, heads, sizes, stems, first weights."""

import pytest
import torch
from torch import nn

from revedge import models
from revedge.engine import Forks, SpikeAttention
from revedge.errors import UsageError
from revedge.models import SpikingNet, spiking_units
from revedge.neurons import BaseNode, IFNode, LIFNode, ParametricLIFNode, ReversibleNode

IMAGE, EVENTS = (3, 32, 32), (2, 128, 128)


def _net(name: str, shape: tuple[int, int, int] = IMAGE, **options) -> SpikingNet:
    with torch.device("meta"):
        return models.create(name, in_shape=shape, num_classes=10, timesteps=4, **options)


def _neurons(net: SpikingNet) -> list[BaseNode]:
    found = [unit.neuron for _, unit in spiking_units(net)]
    assert all(isinstance(neuron, BaseNode) for neuron in found)
    return [neuron for neuron in found if isinstance(neuron, BaseNode)]


@pytest.mark.parametrize("family", ["spikingformer", "revsformer"])
@pytest.mark.parametrize(
    ("size", "shape", "tau", "heads", "blocks"),
    [("2-384", IMAGE, 2.0, 12, 2), ("4-384", IMAGE, 2.0, 12, 4), ("2-256", EVENTS, 1.5, 16, 2)],
)
def test_formers(family, size, shape, tau, heads, blocks):
    """LIF with sigmoid of sharpness 4; threshold 0.5 behind attention only; 64 tokens; heads of CIFAR-10 and DVS."""
    net = _net(f"{family}-{size}", shape)
    neurons = _neurons(net)
    assert all(isinstance(n, LIFNode) and n.tau == tau and n.decay_input for n in neurons)
    assert {(n.surrogate.name, n.surrogate.sharpness) for n in neurons} == {("sigmoid", 4.0)}
    assert {(n.v_reset, n.detach_reset) for n in neurons} == {(0.0, True)}

    units = [unit for _, unit in spiking_units(net)]
    behind = [index + 1 for index, u in enumerate(units) if isinstance(u.op, SpikeAttention)]
    assert len(behind) == blocks
    low = [index for index, n in enumerate(neurons) if n.v_threshold != 1.0]
    assert low == behind
    assert {neurons[index].v_threshold for index in low} == {0.5}

    attention = [m for m in net.modules() if isinstance(m, SpikeAttention)]
    assert {(m.heads, m.scale) for m in attention} == {(heads, 0.125)}
    specs = net.state_spec()
    assert {specs[index].shape[1:] for index in behind} == {(8, 8)}
    sides = [spec.shape[1] for spec in specs[:4]]  # of the neurons of the tokenizer
    assert sides == ([32, 32, 32, 16] if shape is IMAGE else [128, 64, 32, 16])
    widths = [spec.shape[0] for spec in specs[:4]]
    dim = int(size[2:])
    assert widths == [dim // 8, dim // 4, dim // 2, dim]


def test_former_sizes_that_cannot_be():
    """Heads and widths that do not divide are named; by default heads are as many as fit."""
    net = _net("spikingformer-2-384", width=40)
    assert {m.heads for m in net.modules() if isinstance(m, SpikeAttention)} == {10}
    for option, value, message in [
        ("heads", 7, "heads=7 does not divide the width 384"),
        ("heads", 0, "heads=0"),
        ("width", 20, "width 20"),
        ("depth", 0, "depth 0"),
    ]:
        with pytest.raises(UsageError, match=message):
            _net("spikingformer-2-384", IMAGE, **{option: value})
    for name in ("resnet18", "vgg11", "plif-net7", "revsresnet21"):
        with pytest.raises(UsageError, match=r"heads=4 does not apply to .*no attention"):
            _net(name, EVENTS, heads=4)


def test_former_heads_begin_small():
    """Truncated normal of deviation 0.02, and no bias; convolutions begin as torch has them."""
    torch.manual_seed(0)
    net = models.create("revsformer-2-384", in_shape=IMAGE, num_classes=100, timesteps=1)
    net.requires_grad_(False)
    linear = next(m for m in net.head.modules() if isinstance(m, nn.Linear))
    assert abs(float(linear.weight.std()) / 0.02 - 1) < 4 / (2 * linear.weight.numel()) ** 0.5
    assert float(linear.bias.abs().max()) == 0
    conv = next(m for m in net.body.modules() if isinstance(m, nn.Conv2d))
    bound = conv.weight[0].numel() ** -0.5  # kaiming_uniform_(a=sqrt(5)): uniform within it
    assert 0.99 * bound < float(conv.weight.abs().max()) <= bound


@pytest.mark.parametrize(
    ("name", "shape", "first"),
    [
        ("resnet18", IMAGE, (64, 32, 32)),
        ("resnet18", (3, 64, 64), (64, 64, 64)),  # Tiny-ImageNet
        ("resnet50", (3, 224, 224), (64, 112, 112)),
        ("resnet19", (3, 128, 128), (128, 128, 128)),  # has one stem only
    ],
)
def test_stems_of_resnets(name, shape, first):
    """3x3 for small images; 7x7 with stride 2, and max pooling behind its neuron, for large ones."""
    net = _net(name, shape)
    shapes = [spec.shape for spec in net.state_spec()]
    assert shapes[0] == first
    large = shape[1] > 200
    assert shapes[1][1] == (first[1] // 2 if large else first[1])
    assert shapes[-1] == ((256,) if name == "resnet19" else (*shapes[-1][:1], *shapes[-2][1:]))
    forks = next(run for run in net.runs() if isinstance(run, Forks)).fork_list()
    assert (forks[0].head is None) == large


def test_neurons_of_the_others():
    """LIF with tau 2 for ResNets, PLIF that begins at tau 2 for the nets of its paper; atan of sharpness 2."""
    for name, kind, shape in [
        ("resnet34", LIFNode, IMAGE),
        ("preact-resnet18", LIFNode, IMAGE),
        ("plif-net8", ParametricLIFNode, EVENTS),
        ("revsresnet109", IFNode, IMAGE),
    ]:
        for neuron in _neurons(_net(name, shape)):
            assert type(neuron) is kind
            assert (neuron.surrogate.name, neuron.surrogate.sharpness) == ("atan", 2.0)
            assert (neuron.v_threshold, neuron.v_reset, neuron.detach_reset) == (1.0, 0.0, True)
            tau = getattr(neuron, "tau", getattr(neuron, "init_tau", 2.0))
            assert tau == 2.0


@pytest.mark.parametrize("name", ["resnet18", "resnet19", "resnet50", "preact-resnet18"])
def test_resnets_take_the_reversible_neuron(name):
    """As arXiv 2308.08649 trains them."""
    net = _net(name, neuron="reversible")
    assert all(isinstance(unit.neuron, ReversibleNode) for _, unit in spiking_units(net))


def test_plif_nets_vote():
    """Logits of a step are shares of ten votes; dropout stands before both linear layers."""
    net = models.create("plif-net7", in_shape=(2, 16, 16), num_classes=3, timesteps=2, width=4)
    logits, _ = net.step(torch.rand(5, 2, 16, 16), net.initial_states(5))
    assert torch.equal(logits * 10, torch.round(logits * 10))
    dense = [u for _, u in spiking_units(net) if isinstance(u.op, nn.Linear)]
    assert [(u.dropout, u.op.bias is None) for u in dense if isinstance(u.op, nn.Linear)] == [
        (0.5, True),
        (0.5, True),
    ]
    assert [u.op.out_features for u in dense if isinstance(u.op, nn.Linear)] == [16, 30]
