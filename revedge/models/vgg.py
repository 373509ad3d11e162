"""Spiking VGG: conv-BN-neuron(-pool) in a chain, no identity path; with LIF neurons or the reversible neuron."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from revedge.engine import Branch, Feed, GlobalMean, Unit
from revedge.models.member import Member, Size, refuse
from revedge.models.net import SpikingNet
from revedge.models.parts import conv, scaled, stem
from revedge.models.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class VGG(Member):
    """Convolutions of the widths in ``layers``; "M" halves by max pooling behind the neuron before it.

    The first convolution and its normalization are the stem; they run once for static images. The last neuron feeds
    global average-linear at every step.

    Attributes:
        layers: widths and "M", beginning with a width.
    """

    layers: Sequence[int | str]

    def build(self, task: Task, size: Size) -> SpikingNet:
        """See `Member`."""
        refuse(task, "depth", size.depth, f"choose another member: {', '.join(MEMBERS)}")
        refuse(task, "heads", size.heads, "it has no attention")
        layers = scaled_layers(self.layers, size.width)
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


def scaled_layers(layers: Sequence[int | str], width: int | None) -> list[int | str]:
    """Scale the widths in ``layers`` so that the first is ``width``; the rest of the list stays."""
    sizes = iter(scaled([layer for layer in layers if isinstance(layer, int)], width))
    return [next(sizes) if isinstance(layer, int) else layer for layer in layers]


def _vgg(*layers: int | str) -> VGG:
    return VGG(layers=layers, neuron="lif", allow_reversible=True)


MEMBERS = {
    "vgg5": _vgg(32, "M", 64, "M", 128),
    "vgg-iso10": _vgg(*[32] * 10),  # ten equal blocks without pooling
    "vgg11": _vgg(64, "M", 128, "M", *[256] * 2, "M", *[512] * 2, "M", *[512] * 2, "M"),
    "vgg13": _vgg(64, 64, "M", 128, 128, "M", *[256] * 2, "M", *[512] * 2, "M", *[512] * 2, "M"),
    "vgg16": _vgg(64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"),
    "vgg19": _vgg(64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"),
}
