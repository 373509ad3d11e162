"""What Spikingformer and RevSFormer share: tokenizer, attention branch, MLP branch, head.

Tokens stay pixels, ``[T, B, C, H, W]``, and every linear map of tokens is a 1x1 convolution: the same numbers as
``Conv1d`` over ``[B, C, H*W]``, without a change of layout. One convolution to 3C makes q, k and v; it is the three
published ones with their weights stacked, and batch normalization is per channel, so parameters and results are theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from revedge.engine import Branch, Feed, GlobalMean, SpikeAttention, Unit
from revedge.errors import UsageError
from revedge.models.member import Member, Size
from revedge.models.task import MakeNeuron, Task

MLP_RATIO = 4
_ATTENTION_THRESHOLD = 0.5  # of the neuron that reads what attention gives out


@dataclass(frozen=True, kw_only=True, slots=True)
class Former(Member):
    """A member with tokens and attention.

    Attributes:
        dim: channels of a token, d.
        blocks: blocks of attention and MLP.
        heads: attention heads.
        pools: for each of the four neurons of the tokenizer, whether max pooling 3 s2 p1 follows it.
    """

    dim: int
    blocks: int
    heads: int
    pools: Sequence[bool]

    def sized(self, task: Task, size: Size) -> tuple[int, int, int]:
        """Token channels, blocks and heads.

        ``size.width`` is here the number of token channels.

        Raises:
            UsageError: a size that cannot be.
        """
        task.check_size(sum(self.pools))
        dim = self.dim if size.width is None else size.width
        blocks = self.blocks if size.depth is None else size.depth
        if dim < 8 or dim % 8:
            raise UsageError(
                f"width {dim} is not 8 or a multiple: the tokenizer begins with 1/8 of it"
            )
        if blocks < 1:
            raise UsageError(f"depth {blocks} is not a number of blocks; use 1 or more")
        heads = size.heads
        if heads is None:
            heads = max(h for h in range(1, self.heads + 1) if dim % h == 0)
        if heads < 1 or dim % heads:
            raise UsageError(f"heads={heads} does not divide the width {dim}; use a divisor of it")
        return dim, blocks, heads


def patch_stem(c_in: int, dim: int) -> Feed:
    """conv3x3-BN to d/8 channels: what the tokenizer does before its first neuron, once for a static image."""
    return Feed([Branch([Unit(op=_conv(c_in, dim // 8, 3))], norm=nn.BatchNorm2d(dim // 8))])


def tokenizer(
    neuron: MakeNeuron, dim: int, pools: Sequence[bool], *, close: nn.Module | None = None
) -> Feed:
    """Four times neuron(-max pool)-conv3x3-BN, from d/8 to d/4, d/2, d and d channels.

    Args:
        neuron: makes its neurons.
        dim: d.
        pools: which neurons max pooling 3 s2 p1 follows.
        close: what becomes of the tokens at the end.
    """
    widths = [dim // 8, dim // 4, dim // 2, dim, dim]
    units = [
        Unit(
            norm=nn.BatchNorm2d(widths[index]) if index else None,
            neuron=neuron(),
            pool=nn.MaxPool2d(3, 2, 1) if pooled else None,
            op=_conv(widths[index], widths[index + 1], 3),
        )
        for index, pooled in enumerate(pools)
    ]
    return Feed([Branch(units, norm=nn.BatchNorm2d(dim), pool=close)])


def attention_branch(neuron: MakeNeuron, dim: int, heads: int) -> Branch:
    """Spiking self-attention: neuron; q, k, v = neuron(BN(conv1x1)); (q k^T) v / 8; neuron; conv1x1-BN. No softmax."""
    return Branch(
        [
            Unit(neuron=neuron(), op=_conv(dim, 3 * dim, 1)),
            Unit(norm=nn.BatchNorm2d(3 * dim), neuron=neuron(), op=SpikeAttention(heads)),
            Unit(
                neuron=neuron(v_threshold=_ATTENTION_THRESHOLD),
                op=_conv(dim, dim, 1, bias=True),
            ),
        ],
        norm=nn.BatchNorm2d(dim),
    )


def mlp_branch(neuron: MakeNeuron, dim: int) -> Branch:
    """neuron-conv1x1 to 4d-BN-neuron-conv1x1 to d-BN, the convolutions with bias."""
    hidden = MLP_RATIO * dim
    return Branch(
        [
            Unit(neuron=neuron(), op=_conv(dim, hidden, 1, bias=True)),
            Unit(norm=nn.BatchNorm2d(hidden), neuron=neuron(), op=_conv(hidden, dim, 1, bias=True)),
        ],
        norm=nn.BatchNorm2d(dim),
    )


def token_head(dim: int, num_classes: int) -> Feed:
    """Mean over tokens, linear, at every step; no neuron. Its mean over time is linear of the mean over time."""
    linear = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return Feed([Branch([Unit(pool=GlobalMean(), op=linear)])])


def _conv(c_in: int, c_out: int, kernel: int, *, bias: bool = False) -> nn.Conv2d:
    """With torch's own initialization, as published."""
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=bias)
