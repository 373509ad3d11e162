"""MS-ResNet: residual nets with membrane shortcuts (baseline of arXiv 2312.07922; 18, 34 as published)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from revedge.engine import Branch, Feed, Residual, Run, Unit
from revedge.models.member import Size, Staged
from revedge.models.net import SpikingNet
from revedge.models.parts import basic_branch, conv, head, stem
from revedge.models.task import MakeNeuron, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class MSResNet(Staged):
    """Stem, stages of pre-activation blocks, head. Where size or width changes, the skip is neuron-conv1x1-BN.

    Attributes:
        blocks: blocks per stage, the one that halves included.
        dvs_stem: stride 2 and MaxPool 3 s2 p1 in the stem, for frames of 128x128.
    """

    def build(self, task: Task, size: Size) -> SpikingNet:
        """See `Member`."""
        widths, blocks = self.sized(task, size)
        task.check_size(len(widths) - 1 + 2 * self.dvs_stem)
        body: list[Run] = []
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if stage:
                body.append(_entry(task.neuron, widths[stage - 1], width))
            identity = count - (stage > 0)
            if identity:
                body.append(
                    Residual(
                        [basic_branch(task.neuron, width, width) for _ in range(identity)],
                        on_grid=True,
                    )
                )
        return task.net(
            stem(
                task.in_shape[0],
                widths[0],
                dvs_pool=nn.MaxPool2d(3, 2, 1) if self.dvs_stem else None,
            ),
            body,
            head(task.neuron, widths[-1], task.num_classes),
        )


def _entry(neuron: MakeNeuron, c_in: int, c_out: int) -> Feed:
    """The first block of a stage: no identity path, so both its branches are fed."""
    skip = Branch([Unit(neuron=neuron(), op=conv(c_in, c_out, 1, 2))], norm=nn.BatchNorm2d(c_out))
    return Feed([skip, basic_branch(neuron, c_in, c_out, 2)])


def _ms(blocks: Sequence[int], widths: Sequence[int] = (32, 64), **options: Any) -> MSResNet:
    return MSResNet(widths=widths, blocks=blocks, **options)


# Small members (two stages) are for small frames; the others are the published nets.
MEMBERS = {
    "ms-resnet6": _ms([1, 1]),
    "ms-resnet10": _ms([2, 2]),
    "ms-resnet18": _ms([2, 2, 2, 2], [64, 128, 256, 512]),
    "ms-resnet34": _ms([3, 4, 6, 3], [64, 128, 256, 512]),
    "ms-resnet20": _ms(
        [3, 3, 3], [16, 32, 64], neuron="lif", tau=1.5, surrogate="sigmoid", dvs_stem=True
    ),
}
