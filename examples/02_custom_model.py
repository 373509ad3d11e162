"""A model of your own from the engine's blocks, trained with a loop of your own.

    python examples/02_custom_model.py --steps 40

Units (normalize -> neuron -> operator) form branches, branches form runs. Each run keeps between forward and
backward only what its strategy says, and gives the same bits under each: shown here for the first batch.
"""

import argparse
import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from revedge import LIFNode, SpikingNet
from revedge.data import FrameCache, prepare
from revedge.engine import Branch, Feed, GlobalMean, Residual, Unit

TIMESTEPS = 6


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution; the batch normalization after it has the bias."""
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)


def block(channels: int) -> Branch:
    """Return neuron-conv-norm-neuron-conv-norm: its input can be found again from its output."""
    first = Unit(neuron=LIFNode(tau=2.0), op=conv(channels, channels))
    second = Unit(
        norm=nn.BatchNorm2d(channels), neuron=LIFNode(tau=2.0), op=conv(channels, channels)
    )
    return Branch([first, second], norm=nn.BatchNorm2d(channels))


def build(in_shape: tuple[int, int, int], num_classes: int, width: int, depth: int) -> SpikingNet:
    """Return stem -> ``depth`` residual blocks -> head; the memory of the blocks does not grow with depth."""
    stem = Feed([Branch([Unit(op=conv(in_shape[0], width, stride=2))], norm=nn.BatchNorm2d(width))])
    blocks = Residual([block(width) for _ in range(depth)], on_grid=True)
    last = Unit(neuron=LIFNode(tau=2.0), pool=GlobalMean(), op=nn.Linear(width, num_classes))
    return SpikingNet(
        stem=stem,
        body=[blocks],
        head=Feed([Branch([last])]),
        in_shape=in_shape,
        num_classes=num_classes,
        timesteps=TIMESTEPS,
        static=False,
        config={},  # a model of the registry keeps its arguments here
    )


def gradient_digest(net: SpikingNet, events: Tensor, labels: Tensor) -> str:
    """Return the SHA-256 of all gradients of one batch."""
    net.zero_grad()
    nn.functional.cross_entropy(net(events), labels).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return hashlib.sha256(b"".join(g.numpy().tobytes() for g in gradients)).hexdigest()


def main() -> None:
    """Compare strategies on one batch, then train."""
    parser = argparse.ArgumentParser(description="build and train a model of your own")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(0)
    shuffle = np.random.default_rng(0)
    cache = FrameCache.open(prepare("digits", timesteps=TIMESTEPS))
    net = build(cache.in_shape, cache.num_classes, width=32, depth=4)

    def batch(size: int = 64) -> tuple[Tensor, Tensor]:
        frames, labels = cache.batch(shuffle.choice(cache.train_indices, size))
        return torch.from_numpy(frames) * cache.scale, torch.from_numpy(labels)

    events, labels = batch()
    for strategy in ("store", "keep-conv", "keep-spikes", "reverse"):
        net.set_strategy(strategy)
        print(f"{strategy:<12} gradients {gradient_digest(net, events, labels)[:16]}")

    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(1, args.steps + 1):
        events, labels = batch()
        logits = net(events)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            right = (logits.argmax(1) == labels).float().mean().item()
            print(f"step {step:>3}  loss {loss.item():.3f}  right {right:.0%}")


if __name__ == "__main__":
    main()
