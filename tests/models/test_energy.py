"""The cost report counts what a network really does, and flatters nothing."""

import pytest
import torch
from torch import nn

from revedge import models
from revedge.engine import Branch, Feed, GlobalMean, Unit
from revedge.models.count import macs
from revedge.models.energy import measure_cost
from revedge.neurons import IFNode


def _net(static: bool = False) -> models.SpikingNet:
    """conv3x3 - IF - conv3x3 - IF - mean - linear on 4x4 frames, three steps; thresholds of 0.5."""
    torch.manual_seed(0)
    hidden = Unit(neuron=IFNode(0.5), op=nn.Conv2d(3, 2, 3, padding=1, bias=False))
    readout = Unit(neuron=IFNode(0.5), pool=GlobalMean(), op=nn.Linear(2, 2))
    return models.SpikingNet(
        stem=Feed([Branch([Unit(op=nn.Conv2d(1, 3, 3, padding=1, bias=False))])]),
        body=[Feed([Branch([hidden])])],
        head=Feed([Branch([readout])]),
        in_shape=(1, 4, 4),
        num_classes=2,
        timesteps=3,
        static=static,
        config={"name": "small"},
    ).eval()


def _by_hand(net: models.SpikingNet, x: torch.Tensor) -> tuple[float, int]:
    """Additions of the second convolution, one by one: for every spike, the weights that it meets."""
    spikes, v = [], torch.zeros(x.shape[1], 3, 4, 4)
    with torch.no_grad():
        for frame in x:
            v = v + net.stem(frame[None])[0]
            fired = v >= 0.5
            spikes.append(fired)
            v = v.masked_fill(fired, 0.0)
    additions = 0
    for fired in spikes:
        for _, _, row, column in fired.nonzero().tolist():
            rows = sum(0 <= row + d < 4 for d in (-1, 0, 1))
            columns = sum(0 <= column + d < 4 for d in (-1, 0, 1))
            additions += rows * columns * 2  # two output channels
    return additions / x.shape[1], int(sum(f.sum() for f in spikes))


def test_additions_are_those_counted_by_hand() -> None:
    """A spike meets 4 weights in a corner, 6 at an edge, 9 inside, for each output channel."""
    net = _net()
    x = (torch.rand(3, 5, 1, 4, 4) > 0.5).float() * 2.0
    report = measure_cost(net, [x[:, :2], x[:, 2:]])
    additions, spikes = _by_hand(net, x)
    stem, hidden, head = report.layers
    assert (hidden.reads, hidden.macs, hidden.accumulates) == (
        "spikes",
        0.0,
        pytest.approx(additions),
    )
    assert spikes > 0
    assert hidden.rate == pytest.approx(spikes / (3 * 5 * 48))
    assert report.neurons[0].rate == hidden.rate
    assert hidden.dense == 3 * 16 * 2 * 27
    assert (stem.reads, stem.accumulates, stem.macs) == ("values", 0.0, stem.dense)
    assert (head.reads, head.macs) == ("values", 3 * 2 * 2), "a mean of spikes is no spike"
    values = report.to_dict()
    assert values["dense_operations"] == macs(net) == stem.dense + hidden.dense + head.dense
    assert values["estimate_45nm_uj"] == pytest.approx(
        1e-6 * (0.9 * hidden.accumulates + 4.6 * (stem.dense + head.dense))
    )
    assert values["dense_45nm_uj"] > values["estimate_45nm_uj"]
    assert values["neuron_updates"] == 3 * (48 + 32)
    assert values["spikes"] == pytest.approx(spikes / 5 + report.neurons[1].rate * 96)


def test_binary_frames_still_cost_a_full_stem_when_one_is_not() -> None:
    """Events of 0 and 1 are additions; one frame with another value makes all of the stem multiply-adds."""
    net = _net()
    binary = (torch.rand(3, 2, 1, 4, 4) > 0.5).float()
    assert measure_cost(net, [binary]).layers[0].reads == "spikes"
    analog = binary.clone()
    analog[1, 0, 0, 0, 0] = 0.3
    assert measure_cost(net, [binary, analog]).layers[0].macs == 3 * 16 * 3 * 9


def test_bytes_are_those_of_the_tensors() -> None:
    """Weights as stored, biases in float32, one float32 per neuron."""
    net = _net()
    x = torch.ones(3, 1, 1, 4, 4)
    wide, narrow = measure_cost(net, [x]), measure_cost(net, [x], bytes_per_weight=1)
    assert [layer.weight_bytes for layer in wide.layers] == [4 * 27, 4 * 54, 4 * 4 + 8]
    assert [layer.weight_bytes for layer in narrow.layers] == [27, 54, 4 + 8]
    assert [neuron.state_bytes for neuron in wide.neurons] == [192, 128]


def test_images_and_every_kind_of_layer_are_counted() -> None:
    """A static net reads its image at every step; attention and reversible neurons hand on values."""
    image = torch.rand(2, 1, 4, 4)
    assert measure_cost(_net(static=True), [image]).layers[0].macs == 3 * 16 * 3 * 9
    options = {"in_shape": (2, 16, 16), "num_classes": 5, "timesteps": 2}
    x = torch.rand(2, 1, 2, 16, 16)
    former = models.create("spikingformer-2-384", width=16, heads=2, **options)
    reads = {layer.kind: layer.reads for layer in measure_cost(former, [x]).layers}
    assert reads["SpikeAttention"] == "values"
    assert measure_cost(former, [x]).to_dict()["dense_operations"] == macs(former)
    reversible = models.create("vgg5", width=4, neuron="reversible", **options)
    assert {layer.reads for layer in measure_cost(reversible, [x]).layers} == {"values"}
