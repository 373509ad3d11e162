"""RevSResNet: reversible spiking residual nets (arXiv 2312.07922, section 4; 21, 24, 37 and 109 as published)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from revedge.engine import Branch, Coupling, Feed, Run, Unit
from revedge.models.member import Size, Staged
from revedge.models.net import SpikingNet
from revedge.models.parts import basic_branch, conv, head, stem
from revedge.models.task import MakeNeuron, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class RevSResNet(Staged):
    """Stem, stages of coupling blocks at constant size, a halving transition between stages, head.

    Names count convolutions and the classifier: stem + 4 per block + one per transition + 1.

    Attributes:
        widths: channels of each HALF of the stream, per stage.
        blocks: coupling blocks per stage.
        dvs_stem: stride 2 and AvgPool 3 s2 p1 in the stem, for frames of 128x128.
    """

    def build(self, task: Task, size: Size) -> SpikingNet:
        """See `Member`."""
        widths, blocks = self.sized(task, size)
        task.check_size(len(widths) - 1 + 2 * self.dvs_stem)
        pool = nn.AvgPool2d(3, 2, 1) if self.dvs_stem else None
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


def _rev(blocks: Sequence[int], widths: Sequence[int] = (16, 32), **options: Any) -> RevSResNet:
    return RevSResNet(widths=widths, blocks=blocks, **options)


# Small members (two or three stages) are for small frames; the others are the published nets (109 in the code only).
_WIDTHS = (64, 128, 256, 448)
MEMBERS = {
    "revsresnet11": _rev([1, 1]),
    "revsresnet16": _rev([1, 1, 1], (16, 32, 64)),
    "revsresnet19": _rev([2, 2]),
    "revsresnet27": _rev([3, 3]),
    "revsresnet35": _rev([4, 4]),
    "revsresnet67": _rev([8, 8]),
    "revsresnet21": _rev([1, 1, 1, 1], _WIDTHS),
    "revsresnet37": _rev([1, 2, 3, 2], _WIDTHS),
    "revsresnet109": _rev([2, 4, 16, 4], _WIDTHS),
    "revsresnet24": _rev(
        [1, 2, 2], [16, 32, 48], neuron="lif", tau=1.5, surrogate="sigmoid", dvs_stem=True
    ),
}
