"""RevSResNet: reversible spiking residual nets (arXiv 2312.07922, section 4; layouts 21, 24 and 37 as published)."""

from torch import nn

from revedge.engine import Branch, Coupling, Feed, Run, Unit
from revedge.models.net import SpikingNet
from revedge.models.parts import basic_branch, conv, head, stem
from revedge.models.task import MakeNeuron, Task


def build(task: Task, *, widths: list[int], blocks: list[int], dvs_stem: bool) -> SpikingNet:
    """Stem, stages of coupling blocks at constant size, a halving transition between stages, head.

    Args:
        task: shapes, classes, timesteps and neuron.
        widths: channels of each HALF of the stream, per stage.
        blocks: coupling blocks per stage.
        dvs_stem: stride 2 and AvgPool 3 s2 p1 in the stem, for frames of 128x128.

    Names count convolutions and the classifier: stem + 4 per block + one per transition + 1.
    """
    task.check_size(len(widths) - 1 + 2 * dvs_stem)
    pool = nn.AvgPool2d(3, 2, 1) if dvs_stem else None
    body: list[Run] = []
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if stage:
            body.append(_transition(task.neuron, 2 * widths[stage - 1], 2 * width))
        f, g = ([basic_branch(task.neuron, width, width) for _ in range(count)] for _ in "fg")
        body.append(Coupling(f, g, on_grid=True))
    return task.net(
        stem(task.in_shape[0], 2 * widths[0], dvs_pool=pool),
        body,
        head(task.neuron, 2 * widths[-1], task.num_classes),
    )


def _transition(neuron: MakeNeuron, c_in: int, c_out: int) -> Feed:
    """neuron-AvgPool 3 s2 p1-conv1x1-BN: not reversible, no skip."""
    unit = Unit(neuron=neuron(), pool=nn.AvgPool2d(3, 2, 1), op=conv(c_in, c_out, 1))
    return Feed([Branch([unit], norm=nn.BatchNorm2d(c_out))])
