"""Spiking VGG: conv-BN-neuron(-pool) in a chain, no identity path; with LIF neurons or the reversible neuron."""

from typing import Any

from torch import nn

from revedge.engine import Branch, Feed, GlobalMean, Unit
from revedge.models.net import SpikingNet
from revedge.models.parts import MakeNeuron, check_size, conv, stem


def build(
    *,
    in_shape: tuple[int, int, int],
    num_classes: int,
    timesteps: int,
    static: bool,
    neuron: MakeNeuron,
    layers: list[int | str],
    config: dict[str, Any],
) -> SpikingNet:
    """Convolutions of the widths in ``layers``; "M" halves by max pooling behind the neuron before it.

    The first convolution and its normalization are the stem; they run once for static images. The last neuron feeds
    global average-linear at every step.

    Args:
        in_shape: (C, H, W).
        num_classes: number of classes.
        timesteps: T.
        static: images instead of event frames.
        neuron: makes one neuron.
        layers: widths and "M", beginning with a width.
        config: what `revedge.models.create` was called with.
    """
    check_size(in_shape, layers.count("M"), config["name"])
    widths = [layer for layer in layers if isinstance(layer, int)]
    pooled = [
        index + 1 < len(layers) and layers[index + 1] == "M"
        for index, w in enumerate(layers)
        if w != "M"
    ]
    units = [
        Unit(
            norm=nn.BatchNorm2d(width) if index else None,
            neuron=neuron(),
            pool=nn.MaxPool2d(2) if pooled[index] else None,
            op=conv(width, widths[index + 1]),
        )
        for index, width in enumerate(widths[:-1])
    ]
    last = nn.Sequential(nn.MaxPool2d(2), GlobalMean()) if pooled[-1] else GlobalMean()
    readout = Unit(
        norm=nn.BatchNorm2d(widths[-1]),
        neuron=neuron(),
        pool=last,
        op=nn.Linear(widths[-1], num_classes),
    )
    return SpikingNet(
        stem=stem(in_shape[0], widths[0]),
        body=[Feed([Branch(units)])],
        head=Feed([Branch([readout])]),
        in_shape=in_shape,
        num_classes=num_classes,
        timesteps=timesteps,
        static=static,
        config=config,
    )
