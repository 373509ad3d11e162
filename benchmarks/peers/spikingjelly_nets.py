"""The nets of the comparison, built of SpikingJelly's layers as its users build them. Nothing of revedge is used.

iso              ten times conv3x3-BN-LIF with 32 channels at full size, mean over space, linear.
vgg11            conv3x3-BN-LIF eight times, max pooling behind some, mean over space, linear.
ms_resnet18      stem conv3x3-BN, then blocks x + BN(conv(LIF(BN(conv(LIF(x)))))); the first of a stage halves and has
                 conv1x1-BN of LIF(x) in place of x; LIF, mean over space, linear.
ms_resnet34      the published one (arXiv 2312.07922, baseline): IF neurons, stem once per image.
spikingformer    4 blocks of width 384 (arXiv 2304.11954): tokenizer, spiking self-attention without softmax, MLP.

LIF: tau 2, decayed input, ATan surrogate (but Spikingformer), hard reset to 0, reset detached.
Convolutions have no bias. The logits are the mean over time. Shapes: ``x [T, N, C, H, W]``.
"""

from collections.abc import Callable

import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

Spiking = Callable[[], nn.Module]


def lif() -> nn.Module:
    """Return a leaky neuron over all time steps at once."""
    return neuron.LIFNode(
        tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m"
    )


def sigmoid_lif() -> nn.Module:
    """Return a leaky neuron with the library's default surrogate, Sigmoid 4, as Spikingformer has it."""
    return neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m")


def integrate_and_fire() -> nn.Module:
    """Return a neuron without leak over all time steps at once."""
    return neuron.IFNode(surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")


def conv_norm(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return convolution and normalization over ``[T, N, ...]``."""
    return [
        layer.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False, step_mode="m"),
        layer.BatchNorm2d(c_out, step_mode="m"),
    ]


class Block(nn.Sequential):
    """conv3x3-BN-LIF, with max pooling by 2 behind it if ``pool``."""

    def __init__(self, c_in: int, c_out: int, *, pool: bool = False) -> None:
        pooling = [layer.MaxPool2d(2, 2, step_mode="m")] if pool else []
        super().__init__(*conv_norm(c_in, c_out), lif(), *pooling)


class Branch(nn.Sequential):
    """neuron-conv3x3-BN-neuron-conv3x3-BN."""

    def __init__(self, spiking: Spiking, c_in: int, c_out: int, stride: int) -> None:
        first = conv_norm(c_in, c_out, 3, stride)
        super().__init__(spiking(), *first, spiking(), *conv_norm(c_out, c_out))


class Residual(nn.Module):
    """skip(x) + branch(x); the skip is x itself where the shape stays."""

    def __init__(self, spiking: Spiking, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and c_in == c_out
        self.skip = (
            nn.Identity() if same else nn.Sequential(spiking(), *conv_norm(c_in, c_out, 1, stride))
        )
        self.branch = Branch(spiking, c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return self.skip(x) + self.branch(x)


class Net(nn.Module):
    """stem -> body -> last -> mean over space -> linear -> mean over time.

    Args:
        stem: first layers; with ``stem_once`` they see one image, and what they give is repeated.
        body: the others.
        width: channels of those.
        last: the neuron before the head, where the body does not end in one.
        timesteps: T.
        stem_once: repeat the stem's output in place of the image.
    """

    def __init__(
        self,
        stem: list[nn.Module],
        body: list[nn.Module],
        width: int,
        timesteps: int,
        *,
        last: nn.Module | None = None,
        stem_once: bool = False,
    ) -> None:
        super().__init__()
        self.stem, self.body = nn.Sequential(*stem), nn.Sequential(*body)
        self.last = nn.Identity() if last is None else last
        self.head = nn.Linear(width, 10)
        self.timesteps, self.stem_once = timesteps, stem_once

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``[N, 10]`` of images ``[N, C, H, W]``."""
        # No name for what is between: it would keep a tensor alive that autograd does not need.
        x = self.last(self.body(self._stem(image)))
        return self.head(x.flatten(3).mean(3)).mean(0)

    def _stem(self, image: Tensor) -> Tensor:
        repeat = (self.timesteps, *[1] * image.dim())
        if self.stem_once:
            return self.stem(image[None]).repeat(repeat)
        return self.stem(image.repeat(repeat))


def iso(timesteps: int) -> nn.Module:
    """Return ten equal blocks."""
    return Net([], [Block(32 if i else 3, 32) for i in range(10)], 32, timesteps)


def vgg11(timesteps: int) -> nn.Module:
    """Return VGG-11 for 32x32 images."""
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    pooled = {0, 1, 3, 5, 7}
    blocks = [Block(widths[i], widths[i + 1], pool=i in pooled) for i in range(8)]
    return Net([], [*blocks], 512, timesteps)


def ms_resnet(
    blocks: list[int], spiking: Spiking, timesteps: int, *, stem_once: bool = False
) -> nn.Module:
    """Return MS-ResNet for 32x32 images with so many blocks per stage."""
    body: list[nn.Module] = []
    c_in = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for index in range(count):
            stride = 2 if stage and not index else 1
            body.append(Residual(spiking, c_in, width, stride))
            c_in = width
    return Net(conv_norm(3, 64), body, 512, timesteps, last=spiking(), stem_once=stem_once)


class Attention(nn.Module):
    """Spiking self-attention: q k^T v without softmax, times 0.125; ``x [T, N, C, L]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first = sigmoid_lif()
        self.q, self.k, self.v = (
            nn.Sequential(*token_layer(width, width, bias=False), sigmoid_lif()) for _ in "qkv"
        )
        self.last = sigmoid_lif()
        self.last.v_threshold = 0.5
        self.project = nn.Sequential(*token_layer(width, width, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch's output."""
        x = self.first(x)
        q, k, v = (self._by_head(part(x)) for part in (self.q, self.k, self.v))
        out = (q @ k.transpose(-1, -2) @ v) * 0.125
        return self.project(self.last(out.transpose(3, 4).flatten(2, 3)))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(3, 4)  # [T, N, heads, L, C / heads]


def token_layer(c_in: int, c_out: int, *, bias: bool) -> list[nn.Module]:
    """Return a linear layer per token, as conv1d of kernel 1, and its normalization, over ``[T, N, C, L]``."""
    return [
        layer.Conv1d(c_in, c_out, 1, bias=bias, step_mode="m"),
        layer.BatchNorm1d(c_out, step_mode="m"),
    ]


class Former(nn.Module):
    """x + attention, then + MLP, over tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            sigmoid_lif(),
            *token_layer(width, 4 * width, bias=True),
            sigmoid_lif(),
            *token_layer(4 * width, width, bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        x = x + self.attention(x)
        return x + self.mlp(x)


def spikingformer(
    timesteps: int, *, depth: int = 4, width: int = 384, heads: int = 12
) -> nn.Module:
    """Return Spikingformer for 32x32 images: 64 tokens, no neuron before the head."""

    def pool() -> nn.Module:
        return layer.MaxPool2d(3, 2, 1, step_mode="m")

    tokenizer = [
        *conv_norm(3, width // 8),
        *[sigmoid_lif(), *conv_norm(width // 8, width // 4)],
        *[sigmoid_lif(), *conv_norm(width // 4, width // 2)],
        *[sigmoid_lif(), pool(), *conv_norm(width // 2, width)],
        *[sigmoid_lif(), pool(), *conv_norm(width, width)],
        nn.Flatten(3),
    ]
    return Net(tokenizer, [Former(width, heads) for _ in range(depth)], width, timesteps)


NETS: dict[str, Callable[[int], nn.Module]] = {
    "iso": iso,
    "vgg11": vgg11,
    "ms_resnet18": lambda timesteps: ms_resnet([2, 2, 2, 2], lif, timesteps),
    "ms_resnet34": lambda timesteps: ms_resnet(
        [3, 4, 6, 3], integrate_and_fire, timesteps, stem_once=True
    ),
    "spikingformer-4-384": spikingformer,
}
# What SpikingJelly's memory optimizer is told to wrap.
TARGETS: dict[str, type[nn.Module]] = {
    "iso": Block,
    "vgg11": Block,
    "ms_resnet18": Branch,
    "ms_resnet34": Branch,
    "spikingformer-4-384": Former,
}


def images(batch: int) -> tuple[Tensor, Tensor]:
    """Return images and labels, the same ones that `revedge bench` feeds."""
    image = torch.rand((batch, 3, 32, 32), generator=torch.Generator().manual_seed(1)) * 2
    label = torch.randint(10, (batch,), generator=torch.Generator().manual_seed(2))
    return image, label
