"""Networks as users write them, named on the command line: what `user_models.py` trains."""

import torch
from torch import Tensor, nn

from revedge.neurons import LIFNode


def chain(
    in_shape: tuple[int, int, int], num_classes: int, timesteps: int, width: int = 32
) -> nn.Module:
    """Return a plain Sequential of layers and our neurons; its first convolution stays on autograd."""
    channels, height, side = in_shape
    half = width * ((height + 1) // 2) * ((side + 1) // 2)
    return nn.Sequential(
        *(nn.Flatten(0, 1), nn.Conv2d(channels, width, 3, padding=1, bias=False)),
        *(nn.BatchNorm2d(width), nn.Unflatten(0, (timesteps, -1)), LIFNode()),
        *(nn.Flatten(0, 1), nn.Conv2d(width, width, 3, 2, 1, bias=False)),
        *(nn.BatchNorm2d(width), nn.Unflatten(0, (timesteps, -1)), LIFNode()),
        *(nn.Flatten(2), nn.Linear(half, num_classes)),
    )


class Recurrent(nn.Module):
    """Two spiking layers; a convolution, a group norm, GELU and a GRU behind them stay on autograd."""

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        timesteps: int,  # noqa: ARG002
        width: int = 32,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_shape[0], width, 3, 2, 1, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.lif1, self.lif2 = LIFNode(), LIFNode()
        self.mix, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width)
        self.gru, self.fc = nn.GRU(width, width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` for events ``[T, B, C, H, W]``."""
        sizes = x.shape[:2]
        y = self.bn1(self.stem(x.flatten(0, 1))).unflatten(0, sizes)
        y = self.bn2(self.conv(self.lif1(y).flatten(0, 1))).unflatten(0, sizes)
        y = self.norm(self.mix(self.lif2(y).flatten(0, 1)))
        y = torch.nn.functional.gelu(y).mean((-2, -1)).unflatten(0, sizes)
        return self.fc(self.gru(y)[0][-1])
