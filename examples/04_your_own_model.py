"""A model that knows nothing of revedge's engine gets memory strategies with one call.

    python examples/04_your_own_model.py --steps 40
    revedge plan --data digits --model examples/04_your_own_model.py:Net --depth 1..16 --budget 320MiB
    revedge train --data digits --model examples/04_your_own_model.py:Net --depth 8 --budget 400MiB --out runs/own

`apply` finds what it can carry, leaves the rest on ordinary autograd, and prints which is which. The model keeps its
modules, parameters and state_dict; gradients are the same bits under every strategy. Models of SpikingJelly's neurons
and layers (step_mode "m") are taken in the same way.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from revedge.data import FrameCache, prepare
from revedge.engine import apply
from revedge.neurons import LIFNode, reset_net

TIMESTEPS = 6
Size = tuple[int, int, int]  # channels, height, width


class Block(nn.Module):
    """x + a branch of two spiking convolutions, written as one would write it in plain PyTorch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lif1, self.lif2 = LIFNode(detach_reset=True), LIFNode(detach_reset=True)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[T, B, C, H, W]``."""
        t, b = x.shape[:2]
        y = self.bn1(self.conv1(self.lif1(x).flatten(0, 1)))
        y = self.bn2(self.conv2(self.lif2(y.unflatten(0, (t, b))).flatten(0, 1)))
        return x + y.unflatten(0, (t, b))


class Net(nn.Module):
    """Stem, blocks, head; the logits are scaled by a module that the engine does not know."""

    def __init__(
        self, in_shape: Size, classes: int, _timesteps: int, width: int = 32, depth: int = 4
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_shape[0], width, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.lif, self.fc = LIFNode(detach_reset=True), nn.Linear(width, classes)
        self.soft_cap = nn.Softsign()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` for events ``[T, B, C, H, W]``."""
        y = self.bn(self.stem(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        y = self.lif(self.blocks(y)).mean((-2, -1))
        return 5 * self.soft_cap(self.fc(y).mean(0))


def main() -> None:
    """Apply, compare one gradient with ordinary autograd, then train."""
    parser = argparse.ArgumentParser(description="memory strategies for a model of your own")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(0)
    shuffle = np.random.default_rng(0)
    cache = FrameCache.open(prepare("digits", timesteps=TIMESTEPS))
    net = Net(cache.in_shape, cache.num_classes, TIMESTEPS)

    def loss_of_a_batch(size: int = 64) -> Tensor:
        frames, labels = cache.batch(shuffle.choice(cache.train_indices, size))
        reset_net(net)
        logits = net(torch.from_numpy(frames) * cache.scale)
        return nn.functional.cross_entropy(logits, torch.from_numpy(labels))

    shuffle = np.random.default_rng(1)
    (plain,) = torch.autograd.grad(loss_of_a_batch(), [net.stem.weight])
    print(apply(net, "keep-spikes"))  # grid=True, "reverse" would rebuild the blocks' stream, too
    shuffle = np.random.default_rng(1)
    (ours,) = torch.autograd.grad(loss_of_a_batch(), [net.stem.weight])
    error = float((ours - plain).norm() / plain.norm())
    print(f"gradient of the stem, against ordinary autograd: {error:.1e}")

    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(1, args.steps + 1):
        loss = loss_of_a_batch()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            print(f"step {step:>3}  loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
