"""Spiking VGG: conv-BN-neuron(-pool) in a chain, no identity path; with LIF neurons or the reversible neuron."""

from torch import nn

from revedge.engine import Branch, Feed, GlobalMean, Unit
from revedge.models.net import SpikingNet
from revedge.models.parts import conv, stem
from revedge.models.task import Task


def build(task: Task, *, layers: list[int | str]) -> SpikingNet:
    """Convolutions of the widths in ``layers``; "M" halves by max pooling behind the neuron before it.

    The first convolution and its normalization are the stem; they run once for static images. The last neuron feeds
    global average-linear at every step.

    Args:
        task: shapes, classes, timesteps and neuron.
        layers: widths and "M", beginning with a width.
    """
    task.check_size(layers.count("M"))
    widths = [layer for layer in layers if isinstance(layer, int)]
    pooled = [
        index + 1 < len(layers) and layers[index + 1] == "M"
        for index, w in enumerate(layers)
        if w != "M"
    ]
    units = [
        Unit(
            norm=nn.BatchNorm2d(width) if index else None,
            neuron=task.neuron(),
            pool=nn.MaxPool2d(2) if pooled[index] else None,
            op=conv(width, widths[index + 1]),
        )
        for index, width in enumerate(widths[:-1])
    ]
    last = nn.Sequential(nn.MaxPool2d(2), GlobalMean()) if pooled[-1] else GlobalMean()
    readout = Unit(
        norm=nn.BatchNorm2d(widths[-1]),
        neuron=task.neuron(),
        pool=last,
        op=nn.Linear(widths[-1], task.num_classes),
    )
    return task.net(
        stem(task.in_shape[0], widths[0]), [Feed([Branch(units)])], Feed([Branch([readout])])
    )
