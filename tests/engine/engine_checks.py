"""Nets, runs and digests that the tests of the engine share."""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revedge import models
from revedge.engine import Branch, Coupling, Feed, Residual, Unit
from revedge.engine.signal import Signal
from revedge.neurons import LIFNode

SMALL = {"in_shape": (2, 12, 12), "num_classes": 5, "timesteps": 3}
NETS = {
    "revsresnet": {"name": "revsresnet19", "width": 4, **SMALL},
    "ms-resnet": {"name": "ms-resnet10", "width": 6, **SMALL},
    "ms-resnet-lif-sigmoid": {
        "name": "ms-resnet10",
        "width": 6,
        "neuron": "lif",
        "surrogate": "sigmoid",
        **SMALL,
    },
    "revsresnet-plif-static": {
        "name": "revsresnet11",
        "width": 4,
        "neuron": "plif",
        "static": True,
        **SMALL,
    },
    "revsresnet24-dvs": {"name": "revsresnet24", "width": 4, **(SMALL | {"in_shape": (2, 32, 32)})},
    "ms-resnet20-dvs": {"name": "ms-resnet20", "width": 4, **(SMALL | {"in_shape": (2, 33, 31)})},
    "spikingformer": {"name": "spikingformer-2-384", "width": 32, "heads": 2, **SMALL},
    "spikingformer-static-if": {
        "name": "spikingformer-2-384",
        "width": 8,
        "depth": 1,
        "neuron": "if",
        "static": True,
        **SMALL,
    },
    "revsformer": {"name": "revsformer-2-384", "width": 32, "heads": 2, **SMALL},
    "revsformer-dvs": {
        "name": "revsformer-2-256",
        "width": 32,
        "heads": 1,
        **(SMALL | {"in_shape": (2, 33, 31)}),
    },
    "resnet18": {"name": "resnet18", "width": 4, **SMALL},
    "resnet19-static-plif": {
        "name": "resnet19",
        "width": 4,
        "depth": 4,
        "neuron": "plif",
        "static": True,
        **SMALL,
    },
    "resnet50": {"name": "resnet50", "width": 2, "depth": 5, **SMALL},
    "resnet34-large": {
        "name": "resnet34",
        "width": 2,
        "depth": 5,
        **(SMALL | {"in_shape": (2, 97, 96), "timesteps": 2}),
    },
    "preact-resnet18": {"name": "preact-resnet18", "width": 4, **SMALL},
    "resnet18-reversible": {"name": "resnet18", "width": 4, "neuron": "reversible", **SMALL},
    "preact-reversible": {"name": "preact-resnet18", "width": 4, "neuron": "reversible", **SMALL},
    "plif-net": {"name": "plif-net7", "width": 4, **(SMALL | {"in_shape": (2, 17, 19)})},
    "vgg": {"name": "vgg5", "width": 6, **SMALL},
    "vgg-reversible": {"name": "vgg5", "width": 6, "neuron": "reversible", **SMALL},
}
# Whose neurons do not fire as they are initialized, at these sizes.
SILENT = ("revsresnet24", "spikingformer", "revsformer", "resnet", "preact", "plif")
# float32 sums of up to n = T*B*H*W = 3*3*144 terms, twice per unit through at most 20 units, each rounded to 2**-24
# relative, in another order than autograd's: sqrt(n) * 20 * 2**-24 < 1e-4 with a factor of 2 to spare.
PLAIN_TOLERANCE = 1e-4
# The reversible neuron's x-hat is read from its input on the 2**-18 grid: 2**-19 absolute on a value of size 1.
REVERSIBLE_TOLERANCE = 2e-4


def net_input(config: dict, batch: int = 3) -> Tensor:
    """A batch that fits a net's config."""
    generator = torch.Generator().manual_seed(1)
    shape = (
        (batch, *config["in_shape"])
        if config.get("static")
        else (config["timesteps"], batch, *config["in_shape"])
    )
    return torch.rand(shape, generator=generator) * 2


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def train_step(net: nn.Module, x: Tensor, forward=None) -> dict[str, Tensor]:
    """Gradients, input gradient included, of one training step."""
    net.train()
    net.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    logits = net(x) if forward is None else forward(net, x)
    F.cross_entropy(logits, torch.arange(logits.shape[0]) % logits.shape[1]).backward()
    return {"loss-logits": logits.detach(), **gradients_of(x, net)}


def gradients_of(x: Tensor, net: nn.Module) -> dict[str, Tensor]:
    """Gradients of the input and of every parameter; each must be there."""
    found = {"input": x.grad, **{name: p.grad for name, p in net.named_parameters()}}
    assert all(g is not None for g in found.values())
    return {name: g for name, g in found.items() if g is not None}


def fresh_net(config: dict, strategy: str) -> models.SpikingNet:
    """The same weights for every strategy. Nets that would be silent get norms so large that every layer fires."""
    torch.manual_seed(0)
    net = models.create(**config, strategy=strategy)
    if config["name"].startswith(SILENT):
        enliven(net)
    return net


def enliven(net: nn.Module) -> None:
    """Give norms and linear layers weights so large that neurons fire."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1.5, 2.5)
            nn.init.uniform_(module.bias, 0.0, 1.0)
        elif isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -0.5, 1.5)


def check_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare tensors by their norms; what is small beside the others is measured against the largest."""
    largest = max(float(g.norm()) for g in expected.values())
    for key, tensor in expected.items():
        error = float((found[key] - tensor).norm())
        # A bias in front of batch norm has gradient 0: a sum that cancels, of terms as large as other gradients.
        floor = largest if key.endswith("op.bias") and "head" not in key else 1e-3 * largest
        assert error <= tolerance * max(float(tensor.norm()), floor), (key, error)


def small_branch(
    channels: int, dropout: float = 0.0, op: nn.Module | None = None, neuron=LIFNode
) -> Branch:
    """Two units of a few channels that end on the grid."""
    return Branch(
        [
            Unit(
                neuron=neuron(detach_reset=True),
                op=nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ),
            Unit(
                norm=nn.BatchNorm2d(channels),
                neuron=neuron(detach_reset=True),
                dropout=dropout,
                op=op or nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ),
        ],
        norm=nn.BatchNorm2d(channels),
    )


RUNS = {
    "feed": lambda **k: Feed([small_branch(4, **k), small_branch(4, **k)]),
    "residual": lambda **k: Residual([small_branch(4, **k) for _ in range(3)]),
    "coupling": lambda **k: Coupling(
        [small_branch(2, **k) for _ in range(2)], [small_branch(2, **k) for _ in range(2)]
    ),
}


def run_digest(make, strategy: str, x: Tensor, check: str = "checksum", **kwargs) -> str:
    """SHA-256 of all gradients of one run."""
    torch.manual_seed(3)
    run = make(**kwargs)
    run.set_strategy(strategy, check=check)
    torch.manual_seed(4)
    x = x.clone().requires_grad_()
    (run(x) ** 2).sum().backward()
    return digest(gradients_of(x, run))


X = torch.randn(3, 2, 4, 5, 7, generator=torch.Generator().manual_seed(0))


def kept_bytes(tape: object, seen: set[int] | None = None) -> int:
    """Bytes of all large float and bit tensors that a tape holds."""
    seen = set() if seen is None else seen
    if isinstance(tape, Tensor):
        key = tape.untyped_storage().data_ptr()
        if (tape.dim() == 1 and tape.dtype == torch.float32) or key in seen:
            return 0  # statistics per channel
        seen.add(key)
        return tape.untyped_storage().nbytes()  # a view keeps all of it
    if isinstance(tape, Signal):
        return kept_bytes([tape.dense, tape.bits], seen)
    if isinstance(tape, list | tuple):
        return sum(kept_bytes(item, seen) for item in tape)
    slots = getattr(tape, "__slots__", ())
    return sum(kept_bytes(getattr(tape, slot), seen) for slot in slots)
