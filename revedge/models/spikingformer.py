"""Spikingformer: attention between spikes in residual blocks (arXiv 2304.11954; baseline of 2312.07922)."""

from dataclasses import dataclass
from typing import Any

from revedge.engine import Branch, Residual
from revedge.models.former_parts import (
    Former,
    attention_branch,
    mlp_branch,
    patch_stem,
    token_head,
    tokenizer,
)
from revedge.models.member import Size
from revedge.models.net import SpikingNet
from revedge.models.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Spikingformer(Former):
    """Tokenizer; blocks ``x <- x + attention(x); x <- x + MLP(x)``; head.

    The two LayerNorms of each published block are left out: its forward never calls them. Drop path is zero there too.
    """

    def build(self, task: Task, size: Size) -> SpikingNet:
        """See `Member`."""
        dim, blocks, heads = self.sized(task, size)
        branches: list[Branch] = []
        for _ in range(blocks):
            branches.append(attention_branch(task.neuron, dim, heads))
            branches.append(mlp_branch(task.neuron, dim))
        return task.net(
            patch_stem(task.in_shape[0], dim),
            [tokenizer(task.neuron, dim, self.pools), Residual(branches, on_grid=True)],
            token_head(dim, task.num_classes),
        )


# Names are blocks and token channels. CIFAR-10 has 12 heads; the papers give CIFAR-100 8 (``heads=8``).
IMAGE: dict[str, Any] = {
    "neuron": "lif",
    "tau": 2.0,
    "surrogate": "sigmoid",
    "dim": 384,
    "heads": 12,
    "pools": (False, False, True, True),  # 32x32 -> 8x8 tokens
}
EVENTS: dict[str, Any] = {
    "neuron": "lif",
    "tau": 1.5,
    "surrogate": "sigmoid",
    "dim": 256,
    "heads": 16,
    "pools": (True, True, True, True),  # 128x128 -> 8x8 tokens
}
MEMBERS = {
    "spikingformer-2-384": Spikingformer(blocks=2, **IMAGE),
    "spikingformer-4-384": Spikingformer(blocks=4, **IMAGE),
    "spikingformer-2-256": Spikingformer(blocks=2, **EVENTS),
}
