"""PreAct-ResNet in spiking form: the net of DSR (Meng et al., CVPR 2022), which arXiv 2308.08649 makes reversible."""

from dataclasses import dataclass

from torch import nn

from revedge.engine import Branch, Feed, Fork, Forks, GlobalMean, Unit
from revedge.models.member import Size, Staged
from revedge.models.net import SpikingNet
from revedge.models.parts import conv
from revedge.models.task import MakeNeuron, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class PreActResNet(Staged):
    """conv3x3; stages of blocks ``z <- shortcut(s) + branch(s)``, ``s = neuron(BN(z))``; BN-neuron-average-linear.

    The branch is conv3x3-BN-neuron-conv3x3, convolutions with bias; where size or width changes the shortcut is a
    conv1x1 with bias, else the spikes. No normalization follows a branch, so streams are not rounded to the grid: under
    ``keep-conv`` each is kept, under ``reverse`` it is made again from spikes like everything else.
    DSR's two further neurons, before and behind the classifier, belong to its decoding of rates and are left out.
    """

    def build(self, task: Task, size: Size) -> SpikingNet:
        """See `Member`."""
        widths, blocks = self.sized(task, size)
        task.check_size(len(widths) - 1)
        forks: list[Fork] = []
        c_in = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                stride = 2 if stage and not index else 1
                identity = stride == 1 and c_in == width
                forks.append(_block(task.neuron, c_in, width, stride, identity=identity))
                c_in = width
        readout = Unit(
            norm=nn.BatchNorm2d(c_in),
            neuron=task.neuron(),
            pool=GlobalMean(),
            op=nn.Linear(c_in, task.num_classes),
        )
        return task.net(
            Feed([Branch([Unit(op=conv(task.in_shape[0], widths[0]))])]),
            [Forks(forks)],
            Feed([Branch([readout])]),
        )


def _block(neuron: MakeNeuron, c_in: int, c_out: int, stride: int, *, identity: bool) -> Fork:
    first, second = conv(c_in, c_out, 3, stride, bias=True), conv(c_out, c_out, bias=True)
    branch = Branch([Unit(op=first), Unit(norm=nn.BatchNorm2d(c_out), neuron=neuron(), op=second)])
    arms = [branch]
    if not identity:
        arms.append(Branch([Unit(op=conv(c_in, c_out, 1, stride, bias=True))]))
    head = Unit(norm=nn.BatchNorm2d(c_in), neuron=neuron())
    return Fork(arms, head=head, identity=identity)


MEMBERS = {
    "preact-resnet18": PreActResNet(
        widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), neuron="lif", allow_reversible=True
    ),
}
