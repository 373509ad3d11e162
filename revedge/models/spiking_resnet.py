"""Spiking ResNet: He et al.'s nets with a neuron in place of every ReLU, behind the addition too.

Of the residual forms in use this one is taken for the names ResNet-18 to 101, because the nets that arXiv 2308.08649
(ResNet-18, 19, 34, 50, 101) and the works it compares with train are of this form: STBP-tdBN, which defines ResNet-19,
and SpikingJelly's ``spiking_resnet``. Adding membranes before the neuron is MS-ResNet, a family of its own; SEW-ResNet
adds spikes to counts behind the neuron.
Normalization is ordinary batch norm over time and batch. tdBN is that times threshold / sqrt(2) at a shortcut, a factor
that the norm's own gain can learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from revedge.engine import Branch, Feed, Fork, Forks, GlobalMean, Run, Unit
from revedge.models.member import Size, Staged
from revedge.models.net import SpikingNet
from revedge.models.parts import conv
from revedge.models.task import MakeNeuron, Task

# Pixels: from here on the stem of ImageNet; below, Tiny-ImageNet included, that of CIFAR.
_LARGE = 96
_EXPANSION = 4  # of a bottleneck


@dataclass(frozen=True, kw_only=True, slots=True)
class SpikingResNet(Staged):
    """Stem; stages of blocks ``s' = neuron(shortcut(s) + branch(s))``; global average-linear at every step.

    The stem is conv3x3-BN-neuron, or from 96x96 pixels on conv7x7 s2-BN-neuron-MaxPool 3 s2 p1. Where size or width
    changes the shortcut is conv1x1-BN, else the spikes themselves. All blocks are one run: each keeps its spikes at one
    bit under ``reverse``, the same as under ``keep-spikes`` for the first neuron of a block.

    Attributes:
        bottleneck: blocks are conv1x1-conv3x3-conv1x1 to four times the width, else conv3x3-conv3x3.
        hidden: width of a neuron layer between pooling and classifier, as a share of the last stage; 0: none.
        small: always the small stem.
    """

    bottleneck: bool = False
    hidden: float = 0.0
    small: bool = False

    def build(self, task: Task, size: Size) -> SpikingNet:
        """See `Member`."""
        widths, blocks = self.sized(task, size)
        large = not self.small and min(task.in_shape[1:]) >= _LARGE
        task.check_size(len(widths) - 1 + 2 * large)
        neuron, stem_op = task.neuron, conv(task.in_shape[0], widths[0], *((7, 2) if large else ()))
        body: list[Run] = []
        if large:
            body.append(Feed([Branch([Unit(neuron=neuron(), pool=nn.MaxPool2d(3, 2, 1))])]))
        expansion = _EXPANSION if self.bottleneck else 1
        forks: list[Fork] = []
        c_in = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                stride = 2 if stage and not index else 1
                arms = [self._branch(neuron, c_in, width, stride)]
                identity = stride == 1 and c_in == width * expansion
                if not identity:
                    arms.append(_shortcut(c_in, width * expansion, stride))
                head = Unit(neuron=neuron()) if forks or not large else None
                forks.append(Fork(arms, head=head, identity=identity))
                c_in = width * expansion
        body.append(Forks(forks))
        return task.net(
            Feed([Branch([Unit(op=stem_op)], norm=nn.BatchNorm2d(widths[0]))]),
            body,
            Feed([Branch(self._readout(neuron, c_in, task.num_classes))]),
        )

    def _branch(self, neuron: MakeNeuron, c_in: int, width: int, stride: int) -> Branch:
        """Convolutions with BN-neuron between them; the 3x3 one of a bottleneck has the stride (ResNet v1.5)."""
        if self.bottleneck:
            c_out = _EXPANSION * width
            ops = [conv(c_in, width, 1), conv(width, width, 3, stride), conv(width, c_out, 1)]
        else:
            ops = [conv(c_in, width, 3, stride), conv(width, width)]
        units = [Unit(op=ops[0])]
        units += [Unit(norm=nn.BatchNorm2d(width), neuron=neuron(), op=op) for op in ops[1:]]
        return Branch(units, norm=nn.BatchNorm2d(ops[-1].out_channels))

    def _readout(self, neuron: MakeNeuron, c_in: int, num_classes: int) -> list[Unit]:
        if not self.hidden:
            return [Unit(neuron=neuron(), pool=GlobalMean(), op=nn.Linear(c_in, num_classes))]
        hidden = max(2, 2 * round(c_in * self.hidden / 2))
        return [
            Unit(neuron=neuron(), pool=GlobalMean(), op=nn.Linear(c_in, hidden)),
            Unit(neuron=neuron(), op=nn.Linear(hidden, num_classes)),
        ]


def _shortcut(c_in: int, c_out: int, stride: int) -> Branch:
    return Branch([Unit(op=conv(c_in, c_out, 1, stride))], norm=nn.BatchNorm2d(c_out))


def _resnet(
    blocks: Sequence[int],
    widths: Sequence[int] = (64, 128, 256, 512),
    *,
    bottleneck: bool = False,
    hidden: float = 0.0,
    small: bool = False,
) -> SpikingResNet:
    return SpikingResNet(
        widths=widths,
        blocks=blocks,
        bottleneck=bottleneck,
        hidden=hidden,
        small=small,
        neuron="lif",
        allow_reversible=True,
    )


MEMBERS = {
    "resnet18": _resnet([2, 2, 2, 2]),
    # STBP-tdBN: three wide stages and a layer of 256 neurons before the classifier, for small inputs.
    "resnet19": _resnet([3, 3, 2], (128, 256, 512), hidden=0.5, small=True),
    "resnet34": _resnet([3, 4, 6, 3]),
    "resnet50": _resnet([3, 4, 6, 3], bottleneck=True),
    "resnet101": _resnet([3, 4, 23, 3], bottleneck=True),
}
