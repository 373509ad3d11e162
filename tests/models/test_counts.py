"""Parameters and multiply-adds of the published nets, against what was printed or counted by others."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import nn

from revedge import models
from revedge.engine import Branch, Feed, Forks, GlobalMean, SpikeAttention, Unit, Voting

IMAGE, EVENTS = (3, 32, 32), (2, 128, 128)
# Name, classes, input, T, parameters, multiply-adds in 10**9 (arXiv 2312.07922, its code, re-counts by others).
# Spikingformer is printed with two LayerNorms per block that its forward never calls: 4d parameters a block.
PUBLISHED = [
    ("revsresnet21", 100, IMAGE, 4, 11_048_420, 2.385),
    ("revsresnet21", 10, IMAGE, 4, 10_967_690, 2.385),
    ("revsresnet37", 100, IMAGE, 4, 23_590_884, 4.660),
    ("revsresnet37", 10, IMAGE, 4, 23_510_154, None),
    ("ms-resnet18", 100, IMAGE, 4, 11_220_132, 2.222),
    ("ms-resnet34", 100, IMAGE, 4, 21_328_292, 4.638),
    ("revsresnet24", 10, EVENTS, 10, 260_362, 0.422),
    ("revsresnet24", 11, EVENTS, 16, 260_459, 0.675),
    ("ms-resnet20", 10, EVENTS, 10, 272_330, 0.416),
    ("ms-resnet20", 11, EVENTS, 16, 272_395, 0.665),
    ("revsformer-2-384", 10, IMAGE, 4, 5_766_586, 2.805),
    ("revsformer-2-384", 100, IMAGE, 4, 5_835_796, 2.805),
    ("revsformer-4-384", 10, IMAGE, 4, 9_323_962, 3.736),
    ("revsformer-4-384", 100, IMAGE, 4, 9_393_172, 3.736),
    ("spikingformer-2-384", 10, IMAGE, 4, 5_765_818 - 2 * 4 * 384, 2.805),
    ("spikingformer-4-384", 10, IMAGE, 4, 9_326_266 - 4 * 4 * 384, 3.736),
    ("revsformer-2-256", 10, EVENTS, 10, 2_569_226, 3.785),
    ("revsformer-2-256", 11, EVENTS, 16, 2_569_739, 6.057),
    ("spikingformer-2-256", 10, EVENTS, 10, 2_568_714 - 2 * 4 * 256, 3.785),
    ("spikingformer-2-256", 11, EVENTS, 16, 2_568_971 - 2 * 4 * 256, 6.057),
]


@pytest.mark.parametrize(("name", "classes", "shape", "steps", "parameters", "giga"), PUBLISHED)
def test_published_counts(name, classes, shape, steps, parameters, giga):
    """Parameters to the last one, multiply-adds to the three digits that were printed."""
    with torch.device("meta"):
        net = models.create(
            name, in_shape=shape, num_classes=classes, timesteps=steps, static=shape is IMAGE
        )
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert giga is None or round(models.macs(net) / 1e9, 3) == giga


# He et al.'s nets have as many parameters and multiply-adds with neurons as with ReLU: torchvision's, at 224x224.
IMAGENET = [
    ("resnet18", 11_689_512, 1.814),
    ("resnet34", 21_797_672, 3.664),
    ("resnet50", 25_557_032, 4.089),
    ("resnet101", 44_549_160, 7.801),
]


@pytest.mark.parametrize(("name", "parameters", "giga"), IMAGENET)
def test_counts_of_resnets_are_those_with_relu(name, parameters, giga):
    """With the stem of ImageNet; multiply-adds are per step."""
    net = _meta(name, (3, 224, 224), 1000)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert round(models.macs(net) / 4 / 1e9, 3) == giga


def _meta(name: str, shape: tuple[int, int, int], classes: int) -> models.SpikingNet:
    with torch.device("meta"):
        return models.create(name, in_shape=shape, num_classes=classes, timesteps=4)


Layer = tuple[int, int]  # parameters, multiply-adds of a time step


def _conv(c_in: int, c_out: int, side: int, kernel: int = 3, *, beside: int = 2) -> Layer:
    """A convolution to side x side pixels; ``beside`` per channel: 2 of the batch norm behind it, 1 of a bias."""
    weights = c_in * c_out * kernel**2
    return weights + beside * c_out, weights * side**2


def _linear(c_in: int, c_out: int, *, bias: bool = True) -> Layer:
    return c_in * c_out + bias * c_out, c_in * c_out


# Simonyan and Zisserman's configurations A, B, D and E for 32x32 images: five times as many 3x3 convolutions of a width
# and a pool, and one linear layer of the 512 channels that are left at one pixel.
_VGG = {
    "vgg11": ([64], [128], [256] * 2, [512] * 2, [512] * 2),
    "vgg13": ([64] * 2, [128] * 2, [256] * 2, [512] * 2, [512] * 2),
    "vgg16": ([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3),
    "vgg19": ([64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4),
    "vgg5": ([32], [64], [128]),
    "vgg-iso10": ([32] * 10,),
}


def _vgg(name: str) -> list[Layer]:
    layers, c_in = [], 3
    for index, widths in enumerate(_VGG[name]):
        for width in widths:
            layers.append(_conv(c_in, width, 32 >> index))
            c_in = width
    return [*layers, _linear(c_in, 10)]


def _residual(widths: Sequence[int], blocks: Sequence[int], *readout: Layer) -> list[Layer]:
    """Stem, stages at 32x32 and halves of it, blocks of two convolutions: He et al.'s for CIFAR, and MS-ResNet."""
    layers, c_in = [_conv(3, widths[0], 32)], widths[0]
    for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        side = 32 >> index
        layers += [_conv(c_in, width, side), *[_conv(width, width, side)] * (2 * count - 1)]
        layers += [_conv(c_in, width, side, 1)] * (c_in != width)  # the shortcut of the first block
        c_in = width
    return layers + list(readout or [_linear(c_in, 10)])


def _preact18() -> list[Layer]:
    """DSR: a norm before, and a bias behind, every convolution but the first; one more norm before the classifier."""
    layers, c_in = [_conv(3, 64, 32, beside=0)], 64
    for index, width in enumerate((64, 128, 256, 512)):
        side = 32 >> index
        for first in (True, False):
            layers += [(2 * c_in, 0), _conv(c_in, width, side, beside=1)]
            layers += [(2 * width, 0), _conv(width, width, side, beside=1)]
            layers += [_conv(c_in, width, side, 1, beside=1)] * (first and c_in != width)
            c_in = width
    return [*layers, (2 * 512, 0), _linear(512, 10)]


def _plif(convolutions: int, classes: int) -> list[Layer]:
    """Convolutions of 128 with a pool behind each, linear layers without bias, a time constant per neuron layer."""
    sides = [128 >> index for index in range(convolutions + 1)]
    trunk = [_conv(128 if index else 2, 128, side) for index, side in enumerate(sides[:-1])]
    hidden = _linear(128 * sides[-1] ** 2, 512, bias=False)
    return [*trunk, hidden, _linear(512, 10 * classes, bias=False), (convolutions + 2, 0)]


def _reversible(widths: Sequence[int], units: Sequence[int]) -> list[Layer]:
    """Stem, units of four convolutions on half the channels, conv1x1 behind each pool between stages, classifier."""
    layers = [_conv(3, 2 * widths[0], 32)]
    for index, (width, count) in enumerate(zip(widths, units, strict=True)):
        layers += [_conv(width, width, 32 >> index)] * (4 * count)
    for index, (before, behind) in enumerate(pairwise(widths), 1):
        layers.append(_conv(2 * before, 2 * behind, 32 >> index, 1))
    return [*layers, _linear(2 * widths[-1], 10)]


BY_HAND = {
    **{name: (IMAGE, 10, _vgg(name)) for name in _VGG},
    # STBP-tdBN: wide stages of 3, 3 and 2 blocks, a layer of 256 neurons before that of the classes.
    "resnet19": (
        IMAGE, 10, _residual((128, 256, 512), (3, 3, 2), _linear(512, 256), _linear(256, 10))
    ),
    "resnet18": (IMAGE, 10, _residual((64, 128, 256, 512), (2, 2, 2, 2))),
    "resnet34": (IMAGE, 10, _residual((64, 128, 256, 512), (3, 4, 6, 3))),
    "ms-resnet6": (IMAGE, 10, _residual((32, 64), (1, 1))),
    "ms-resnet10": (IMAGE, 10, _residual((32, 64), (2, 2))),
    "preact-resnet18": (IMAGE, 10, _preact18()),
    "plif-net7": (EVENTS, 10, _plif(4, 10)),
    "plif-net8": (EVENTS, 11, _plif(5, 11)),
    "revsresnet109": (IMAGE, 10, _reversible((64, 128, 256, 448), (2, 4, 16, 4))),
    "revsresnet16": (IMAGE, 10, _reversible((16, 32, 64), (1, 1, 1))),
    **{
        f"revsresnet{8 * units + 3}": (IMAGE, 10, _reversible((16, 32), (units, units)))
        for units in (1, 2, 3, 4, 8)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_by_hand(name):
    """Layer by layer from the published tables: parameters and multiply-adds to the last one."""
    shape, classes, layers = BY_HAND[name]
    net = _meta(name, shape, classes)
    parameters, macs = (sum(column) for column in zip(*layers, strict=True))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert models.macs(net) == 4 * macs


# Parameters, of the usual nets with a bias in each convolution, and multiply-adds in 10**6, as they are given for
# CIFAR-10: the formulas above are held against them. VGG-16: arXiv 1608.08710, table 1, 3.13e8.
USUAL = [
    ("vgg11", 9_231_114, None),
    ("vgg13", 9_416_010, None),
    ("vgg16", 14_728_266, 313),
    ("vgg19", 20_040_522, None),
    ("resnet18", 11_173_962, None),  # convolutions without bias
    ("resnet34", 21_282_122, None),
]


@pytest.mark.parametrize(("name", "parameters", "mega"), USUAL)
def test_formulas_give_the_usual_counts(name, parameters, mega):
    """What others count for the same nets comes out of the formulas, but for the biases that ours are without."""
    layers = BY_HAND[name][2]
    biases = sum(width for widths in _VGG.get(name, ()) for width in widths)
    assert sum(count for count, _ in layers) + biases == parameters
    assert mega is None or round(sum(macs for _, macs in layers) / 1e6) == mega


def test_every_net_is_counted():
    """No member of the registry is without parameters and multiply-adds here."""
    printed = {name for name, *_, giga in PUBLISHED if giga is not None}
    assert {*models.names()} == printed | {name for name, _, _ in IMAGENET} | {*BY_HAND}


def test_layers_in_the_names():
    """ResNets count convolutions on the longest path and linear layers; PLIF nets count the vote too."""
    for name, shape in [("resnet19", IMAGE), ("resnet50", IMAGE), ("resnet101", IMAGE)]:
        net = _meta(name, shape, 10)
        weights = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        shortcuts = sum(
            len(arm.unit_list()) == 1
            for run in net.runs()
            if isinstance(run, Forks)
            for fork in run.fork_list()
            for arm in fork.arm_list()
        )
        assert len(weights) - shortcuts == int(name.removeprefix("resnet"))
    for name in ("plif-net7", "plif-net8"):
        layers = (nn.Conv2d, nn.Linear, Voting)
        count = sum(isinstance(m, layers) for m in _meta(name, EVENTS, 10).modules())
        assert count == int(name.removeprefix("plif-net"))


def test_macs_by_hand():
    """Each kind of operator once, and nothing else; the net has no hooks afterwards."""
    stem = Feed(
        [Branch([Unit(op=nn.Conv2d(2, 6, 3, stride=2, padding=1))], norm=nn.BatchNorm2d(6))]
    )
    body = Feed([Branch([Unit(op=nn.Conv2d(6, 6, 3, groups=3)), Unit(op=SpikeAttention(2))])])
    head = Feed([Branch([Unit(pool=GlobalMean(), op=nn.Linear(2, 5))])])
    net = models.SpikingNet(
        stem=stem, body=[body], head=head, in_shape=(2, 8, 10), num_classes=5, timesteps=3,
        static=True, config={},
    )  # fmt: skip
    first = 6 * 4 * 5 * 2 * 9
    second = 6 * 2 * 3 * 2 * 9
    attention = 2 * 2 * (2 * 3) ** 2
    assert models.macs(net) == 3 * (first + second + attention + 2 * 5)
    assert not any(m._forward_hooks for m in net.modules())
