"""Nets as a user writes them, without the engine, in several styles, and how they are compared."""

from collections.abc import Callable
from typing import Any

import torch
from engine_checks import PLAIN_TOLERANCE, digest, gradients_of
from torch import Tensor, nn
from torch.nn import functional as F

from revedge.engine import GRID_BITS
from revedge.neurons import IFNode, LIFNode, ParametricLIFNode, reset_net

X = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(c_in: int, c_out: int) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)


class Wrapped(nn.Module):
    """Parts under a forward that is a function of the test's own."""

    def __init__(self, forward: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.calls = 0
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(self, x)


class Block(nn.Module):
    """x + norm(conv(neuron(norm(conv(neuron(x)))))); ``rounded`` puts sums on the grid by hand."""

    def __init__(
        self, channels: int, *, rounded: bool = False, neuron: type[nn.Module] = LIFNode
    ) -> None:
        super().__init__()
        self.lif1, self.conv1, self.bn1 = (
            neuron(detach_reset=True),
            conv(channels, channels),
            nn.BatchNorm2d(channels),
        )
        self.lif2, self.conv2, self.bn2 = (
            neuron(detach_reset=True),
            conv(channels, channels),
            nn.BatchNorm2d(channels),
        )
        self.rounded = rounded

    def branch(self, x: Tensor) -> Tensor:
        """What is added to a stream."""
        t, b = x.shape[:2]
        y = self.bn1(self.conv1(self.lif1(x).flatten(0, 1)))
        y = self.lif2(y.view(t, b, *y.shape[1:]))
        return self.bn2(self.conv2(y.flatten(0, 1))).unflatten(0, (t, b))

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        if self.rounded:
            return on_grid(x) + on_grid(self.branch(x))
        return x + self.branch(x)


def on_grid(x: Tensor) -> Tensor:
    """Round to the grid, straight through in the backward."""
    return x + (torch.round(x * 2**GRID_BITS) / 2**GRID_BITS - x).detach()


class Residual(nn.Module):
    """Stem, blocks, head; folded with flatten and unflatten."""

    def __init__(self, *, rounded: bool = False) -> None:
        super().__init__()
        self.stem, self.bn = conv(4, 6), nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(*[Block(6, rounded=rounded) for _ in range(3)])
        self.lif, self.pool, self.fc = (
            LIFNode(detach_reset=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Linear(6, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, 5]``."""
        t, b = x.shape[0], x.shape[1]
        y = self.bn(self.stem(torch.flatten(x, 0, 1)))
        y = self.blocks(y.reshape(t, b, *y.shape[1:]))
        y = self.pool(self.lif(y).flatten(0, 1)).flatten(1)
        return self.fc(y).unflatten(0, (t, b)).mean(0)


class Coupled(nn.Module):
    """RevSResNet by hand: two halves of the channels that are added to each other."""

    def __init__(self, *, rounded: bool = False) -> None:
        super().__init__()
        self.stem, self.bn = conv(4, 8), nn.BatchNorm2d(8)
        self.f = nn.ModuleList([Block(4) for _ in range(2)])
        self.g = nn.ModuleList([Block(4) for _ in range(2)])
        self.lif, self.fc = LIFNode(detach_reset=True), nn.Linear(8, 5)
        self.rounded = rounded

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, 5]``."""
        y = self.bn(self.stem(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        r: Callable[[Tensor], Tensor] = on_grid if self.rounded else lambda x: x
        y = r(y)
        for f, g in zip(self.f, self.g, strict=True):
            assert isinstance(f, Block)
            assert isinstance(g, Block)
            x1, x2 = y.chunk(2, dim=2)
            y1 = x1 + r(f.branch(x2))
            y2 = x2 + r(g.branch(y1))
            y = torch.cat([y1, y2], dim=2)
        return self.fc(self.lif(y).mean((-2, -1))).mean(0)


class Trunk(nn.Module):
    """A VGG in the style of Spikformer: sizes by name, reshape with -1, pools as functions, two kinds of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.lif1 = (
            conv(4, 6),
            nn.BatchNorm2d(6),
            ParametricLIFNode(detach_reset=True),
        )
        self.conv2, self.bn2, self.lif2 = conv(6, 8), nn.BatchNorm2d(8), IFNode(v_reset=None)
        self.drop, self.fc1 = nn.Dropout(0.25), nn.Linear(8 * 4, 10)
        self.bn3, self.lif3, self.fc2 = (
            nn.BatchNorm1d(10),
            LIFNode(surrogate="sigmoid"),
            nn.Linear(10, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, 5]``."""
        T, B, _, H, W = x.shape
        x = self.conv1(x.flatten(0, 1))
        x = self.bn1(x).reshape(T, B, -1, H, W).contiguous()
        x = F.max_pool2d(self.lif1(x).flatten(0, 1), 2)
        x = self.bn2(self.conv2(x)).reshape(T, B, 8, H // 2, W // 2)
        x = F.avg_pool2d(self.lif2(x).flatten(0, 1), 2)
        x = self.bn3(self.fc1(self.drop(x.flatten(1))))
        return self.fc2(self.lif3(x.view(T, B, -1))).mean(0)


def layers() -> nn.Sequential:
    """Nothing but a Sequential on ``[T, B, ...]``."""
    return nn.Sequential(
        nn.Flatten(2),
        nn.Linear(256, 12),
        LIFNode(),
        nn.Identity(),
        nn.Linear(12, 12),
        IFNode(),
        nn.Linear(12, 5),
    )


class Planes(nn.Module):
    """A stream that stays folded; T is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.timesteps = 3
        self.stem, self.bn, self.lif, self.back = (
            conv(4, 4),
            nn.BatchNorm2d(4),
            LIFNode(),
            nn.BatchNorm2d(4),
        )
        self.conv = conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return a mean over the planes."""
        x = self.stem(x.flatten(0, 1))
        s = self.lif(self.bn(x).unflatten(0, (self.timesteps, -1)))
        x = x + self.back(self.conv(s.flatten(0, 1)))
        return x.unflatten(0, (self.timesteps, -1)).mean((0, -2, -1))


STYLES: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "coupled": Coupled,
    "trunk": Trunk,
    "layers": layers,
    "planes": Planes,
}


def make(style: str) -> Any:
    """The same weights at every call."""
    torch.manual_seed(0)
    return STYLES[style]().train()


def step_of_used(net: nn.Module) -> dict[str, Tensor]:
    """As `step`, of a net whose parameters are not all used."""
    reset_net(net)
    net.zero_grad(set_to_none=True)
    x = X.clone().requires_grad_()
    out = net(x)
    out.square().sum().backward()
    assert x.grad is not None
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"loss-out": out.detach(), "input": x.grad, **found}


def step(
    net: nn.Module, x: Tensor = X, reset: Callable[[nn.Module], None] = reset_net
) -> dict[str, Tensor]:
    """Output and gradients of one training step."""
    reset(net)
    net.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    out = net(x)
    (out * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
    return {"loss-out": out.detach(), **gradients_of(x, net)}


def assert_close(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = PLAIN_TOLERANCE
) -> None:
    """Every tensor agrees up to ``tolerance`` of its norm, or of a thousandth of the largest."""
    assert found.keys() == expected.keys()
    largest = max(float(g.norm()) for g in expected.values())
    for name, reference in expected.items():
        error = float((found[name] - reference).norm())
        assert error <= tolerance * max(float(reference.norm()), 1e-3 * largest), (name, error)


def bits(net: nn.Module, found: dict[str, Tensor]) -> tuple[str, str]:
    """SHA-256 of gradients and of buffers."""
    return digest(found), digest(dict(net.named_buffers()))
