"""The nets for event data of Fang et al., "Incorporating Learnable Membrane Time Constant" (ICCV 2021), table 2."""

from dataclasses import dataclass

from torch import nn

from revedge.engine import Branch, Feed, Unit, Voting
from revedge.models.member import Member, Size, refuse
from revedge.models.net import SpikingNet
from revedge.models.parts import conv, stem
from revedge.models.task import Task

_VOTERS = 10  # neurons per class


@dataclass(frozen=True, kw_only=True, slots=True)
class PLIFNet(Member):
    """n times conv3x3-BN-PLIF-MaxPool2; dropout-linear-PLIF twice; ten neurons vote for each class.

    Linear layers have no bias and dropout is 0.5, one mask for all steps. The logits of a step are shares of votes, so
    their mean over time is a firing rate; the paper trains it with the squared distance from the one-hot label.
    The names count convolutions, linear layers and the vote.

    Attributes:
        channels: of every convolution.
        convolutions: n; each halves the frame.
        hidden: neurons of the first linear layer, per channel.
    """

    channels: int = 128
    convolutions: int
    hidden: int = 4

    def build(self, task: Task, size: Size) -> SpikingNet:
        """See `Member`."""
        refuse(task, "depth", size.depth, f"choose another member: {', '.join(MEMBERS)}")
        refuse(task, "heads", size.heads, "it has no attention")
        task.check_size(self.convolutions)
        width = self.channels if size.width is None else size.width
        trunk = [
            Unit(
                norm=nn.BatchNorm2d(width) if index else None,
                neuron=task.neuron(),
                pool=nn.MaxPool2d(2),
                op=conv(width, width),
            )
            for index in range(self.convolutions - 1)
        ]
        height, breadth = (side >> self.convolutions for side in task.in_shape[1:])
        hidden = self.hidden * width
        first = Unit(
            norm=nn.BatchNorm2d(width),
            neuron=task.neuron(),
            pool=nn.Sequential(nn.MaxPool2d(2), nn.Flatten()),
            dropout=0.5,
            op=nn.Linear(width * height * breadth, hidden, bias=False),
        )
        second = Unit(
            neuron=task.neuron(),
            dropout=0.5,
            op=nn.Linear(hidden, _VOTERS * task.num_classes, bias=False),
        )
        vote = Unit(neuron=task.neuron(), op=Voting(_VOTERS))
        return task.net(
            stem(task.in_shape[0], width),
            [Feed([Branch(trunk)])],
            Feed([Branch([first, second, vote])]),
        )


MEMBERS = {
    "plif-net7": PLIFNet(convolutions=4, neuron="plif"),  # CIFAR10-DVS
    "plif-net8": PLIFNet(convolutions=5, neuron="plif"),  # DVS128 Gesture
}
