"""RevSFormer: Spikingformer's blocks in coupled form, so that nothing is kept per block (arXiv 2312.07922)."""

from dataclasses import dataclass

from revedge.engine import Coupling, Twice
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
from revedge.models.spikingformer import EVENTS, IMAGE
from revedge.models.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class RevSFormer(Former):
    """Tokenizer; the tokens twice, as both halves; ``x1 <- x1 + attention(x2); x2 <- x2 + MLP(x1)``; head on 2d."""

    def build(self, task: Task, size: Size) -> SpikingNet:
        """See `Member`."""
        dim, blocks, heads = self.sized(task, size)
        return task.net(
            patch_stem(task.in_shape[0], dim),
            [
                tokenizer(task.neuron, dim, self.pools, close=Twice()),
                Coupling(
                    [attention_branch(task.neuron, dim, heads) for _ in range(blocks)],
                    [mlp_branch(task.neuron, dim) for _ in range(blocks)],
                    on_grid=True,
                ),
            ],
            token_head(2 * dim, task.num_classes),
        )


MEMBERS = {
    "revsformer-2-384": RevSFormer(blocks=2, **IMAGE),
    "revsformer-4-384": RevSFormer(blocks=4, **IMAGE),
    "revsformer-2-256": RevSFormer(blocks=2, **EVENTS),
}
