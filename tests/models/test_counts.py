"""Parameters and multiply-adds of the published nets, against what was printed or counted by others."""

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


def _conv(c_in: int, c_out: int, kernel: int = 3) -> int:
    """Weights of a convolution and of the batch norm behind it."""
    return c_in * c_out * kernel**2 + 2 * c_out


def _resnet19() -> int:
    """STBP-tdBN: stem, stages of 3, 3 and 2 blocks, layers of 256 neurons and of the classes."""
    first = _conv(3, 128) + 6 * _conv(128, 128)
    second = _conv(128, 256) + 5 * _conv(256, 256) + _conv(128, 256, 1)
    third = _conv(256, 512) + 3 * _conv(512, 512) + _conv(256, 512, 1)
    return first + second + third + 513 * 256 + 257 * 10


def _preact18() -> int:
    """DSR: a norm before, and a bias behind, every convolution but the first; one more norm before the classifier."""
    total, c_in = 3 * 64 * 9, 64
    for width in (64, 128, 256, 512):
        for index in range(2):
            total += 2 * c_in + c_in * width * 9 + width + 2 * width + width * width * 9 + width
            total += (c_in * width + width) * (index == 0 and c_in != width)
            c_in = width
    return total + 2 * 512 + 513 * 10


def _plif(convolutions: int, side: int, classes: int) -> int:
    """Convolutions of 128, linear layers without bias, and one time constant per layer of neurons."""
    trunk = _conv(2, 128) + (convolutions - 1) * _conv(128, 128)
    return trunk + 128 * side**2 * 512 + 512 * 10 * classes + convolutions + 2


def _revsresnet109() -> int:
    """Stem, 2 + 4 + 16 + 4 units of four convolutions, three transitions, classifier."""
    widths, units = (64, 128, 256, 448), (2, 4, 16, 4)
    blocks = sum(4 * n * _conv(w, w) for w, n in zip(widths, units, strict=True))
    between = sum(_conv(2 * a, 2 * b, 1) for a, b in pairwise(widths))
    return _conv(3, 128) + blocks + between + 897 * 10


BY_HAND = {
    "resnet19": (IMAGE, 10, _resnet19()),
    "preact-resnet18": (IMAGE, 10, _preact18()),
    "plif-net7": (EVENTS, 10, _plif(4, 8, 10)),
    "plif-net8": (EVENTS, 11, _plif(5, 4, 11)),
    "revsresnet109": (IMAGE, 10, _revsresnet109()),
    "resnet18": (
        IMAGE,
        10,
        11_173_962,
    ),  # as ResNet-18 with a 3x3 stem is usually given for CIFAR-10
}


@pytest.mark.parametrize("name", BY_HAND)
def test_parameters_by_hand(name):
    """Layer by layer from the published tables, for nets whose totals were not printed."""
    shape, classes, expected = BY_HAND[name]
    assert sum(p.numel() for p in _meta(name, shape, classes).parameters()) == expected


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
