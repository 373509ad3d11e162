"""Parameters and multiply-adds of the published nets, against what was printed or counted by others."""

import pytest
import torch
from torch import nn

from revedge import models
from revedge.engine import Branch, Feed, GlobalMean, SpikeAttention, Unit

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
