"""Small networks, one for each kind of layer, with statistics that normalization has really gathered."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from revedge.engine import (
    Branch,
    Coupling,
    Feed,
    Fork,
    Forks,
    GlobalMean,
    Residual,
    Run,
    SpikeAttention,
    Twice,
    Unit,
    Voting,
)
from revedge.export.writer import ExportedFile
from revedge.models import SpikingNet
from revedge.neurons import (
    BaseNode,
    IFNode,
    LateResetNode,
    LIFNode,
    ParametricLIFNode,
    ReversibleNode,
)

IN_SHAPE = (2, 8, 8)
CLASSES = 5
_WIDTH = 8

MakeNode = Callable[[], BaseNode | ReversibleNode]


def conv(c_in: int = _WIDTH, c_out: int = _WIDTH, **options: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size."""
    return nn.Conv2d(c_in, c_out, 3, padding=1, **options)  # type: ignore[arg-type]


def branch(node: MakeNode = IFNode) -> Branch:
    """Return node-conv-BN-node-conv-BN."""
    units = [
        Unit(neuron=node(), op=conv(bias=False)),
        Unit(norm=nn.BatchNorm2d(_WIDTH), neuron=node(), op=conv()),
    ]
    return Branch(units, norm=nn.BatchNorm2d(_WIDTH))


def network(
    body: list[Run], *, static: bool = False, head: Branch | None = None, timesteps: int = 8
) -> SpikingNet:
    """Return stem, ``body``, head; weights and running statistics are the same on every call."""
    torch.manual_seed(3)
    for module in [part for run in body for part in run.modules()] + (
        list(head.modules()) if head else []
    ):
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    stem = Feed([Branch([Unit(op=conv(2))], norm=nn.BatchNorm2d(_WIDTH))])
    readout = Unit(neuron=IFNode(), pool=GlobalMean(), op=nn.Linear(_WIDTH, CLASSES))
    net = SpikingNet(
        stem=stem,
        body=body,
        head=Feed([head or Branch([readout])]),
        in_shape=IN_SHAPE,
        num_classes=CLASSES,
        timesteps=timesteps,
        static=static,
        config={"name": "zoo"},
    )
    return settle(net)


def settle(net: SpikingNet) -> SpikingNet:
    """Give the normalizations weights and statistics that are not the trivial ones, then put the net in eval mode."""
    torch.manual_seed(4)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1.5, 2.5)  # lively
            nn.init.uniform_(module.bias, -0.2, 0.8)
    net.train()
    with torch.no_grad():
        for seed in range(6):
            x = torch.from_numpy(events(net.timesteps, 8, seed, net.in_shape))
            net(x[0] if net.static else x)
    return net.eval()


def events(
    steps: int, batch: int, seed: int, shape: tuple[int, ...] = IN_SHAPE
) -> npt.NDArray[np.float32]:
    """Return event counts ``[steps, batch, C, H, W]``, about a third of them not zero."""
    counts = np.random.default_rng(seed).poisson(0.4, (steps, batch, *shape))
    return counts.astype(np.float32) * np.float32(0.5)


def chain(node: MakeNode, pool: nn.Module | None = None) -> list[Run]:
    """Return a body of one feed: units in a chain."""
    units = [
        Unit(neuron=node(), pool=pool, op=conv()),
        Unit(norm=nn.BatchNorm2d(_WIDTH), neuron=node(), op=conv()),
    ]
    return [Feed([Branch(units, norm=nn.BatchNorm2d(_WIDTH))])]


def _dense_head() -> Branch:
    hidden = Unit(
        neuron=LIFNode(),
        pool=nn.Sequential(nn.AvgPool2d(2), nn.Flatten()),
        op=nn.Linear(_WIDTH * 16, 12),
    )
    return Branch(
        [
            hidden,
            Unit(norm=nn.BatchNorm1d(12), neuron=IFNode(), dropout=0.3, op=nn.Linear(12, CLASSES)),
        ]
    )


def _one_pixel_head() -> Branch:
    whole = nn.Sequential(nn.MaxPool2d(8), GlobalMean())
    return Branch([Unit(neuron=IFNode(), pool=whole, op=nn.Linear(_WIDTH, CLASSES))])


def _norm_first() -> Branch:
    return Branch(
        [Unit(norm=nn.BatchNorm2d(_WIDTH), neuron=LIFNode(), op=conv())],
        norm=nn.BatchNorm2d(_WIDTH),
    )


def _pooled_close() -> Branch:
    return Branch(
        [Unit(neuron=IFNode(), op=conv())], norm=nn.BatchNorm2d(_WIDTH), pool=nn.AvgPool2d(3, 1, 1)
    )


def _open_feeds() -> list[Run]:
    """A feed that ends in a convolution, and one that begins with its normalization, as in the VGG members."""
    first = Feed([Branch([Unit(neuron=IFNode(), op=conv())])])
    second = Branch(
        [Unit(norm=nn.BatchNorm2d(_WIDTH), neuron=LIFNode(), op=conv())],
        norm=nn.BatchNorm2d(_WIDTH),
    )
    return [first, Feed([second])]


def _off_grid(run: Callable[[list[Branch]], Run]) -> list[Run]:
    return [Feed([Branch([Unit(neuron=IFNode(), op=conv())])]), run([branch(), branch()])]


def _reversible(groups: int, dim: int = -3) -> MakeNode:
    return lambda: ReversibleNode(groups=groups, tau=1.5, alpha=0.2, v_reset=0.1, beta=0.5, dim=dim)


KINDS: dict[str, Callable[[], SpikingNet]] = {
    "if hard": lambda: network(chain(IFNode)),
    "if soft": lambda: network(chain(lambda: IFNode(v_reset=None, v_threshold=0.8))),
    "lif hard": lambda: network(chain(lambda: LIFNode(tau=1.7))),
    "lif reset to -0.2": lambda: network(chain(lambda: LIFNode(tau=1.7, v_reset=-0.2))),
    "lif soft": lambda: network(chain(lambda: LIFNode(tau=3.0, v_reset=None))),
    "lif input not decayed": lambda: network(
        chain(lambda: LIFNode(decay_input=False, v_reset=0.1))
    ),
    "plif": lambda: network(chain(lambda: ParametricLIFNode(init_tau=1.4))),
    "plif soft, input not decayed": lambda: network(
        chain(lambda: ParametricLIFNode(init_tau=2.2, decay_input=False, v_reset=None))
    ),
    "late reset": lambda: network(chain(lambda: LateResetNode(0.8, 0.9))),
    "reversible": lambda: network(chain(_reversible(2))),
    "reversible, 4 groups": lambda: network(chain(_reversible(4))),
    "reversible over rows": lambda: network(chain(_reversible(2, dim=3))),
    "average pool": lambda: network(chain(LIFNode, nn.AvgPool2d(3, 1, 1))),
    "max pool": lambda: network(chain(LIFNode, nn.MaxPool2d(3, 1, 1))),
    "normalization on a stream": lambda: network([Residual([_norm_first()], on_grid=True)]),
    "pool before the grid": lambda: network([Residual([_pooled_close()], on_grid=True)]),
    "normalization in the next feed": lambda: network(_open_feeds()),
    "sum of branches that open with a norm": lambda: network(
        [Feed([Branch([Unit(neuron=IFNode(), op=conv())])]), Feed([_norm_first(), _norm_first()])]
    ),
    "sum of branches": lambda: network([Feed([branch(), branch(LIFNode)])]),
    "residual": lambda: network([Residual([branch(), branch(LIFNode)], on_grid=True)]),
    "residual off the grid": lambda: network(_off_grid(Residual)),
    "coupling": lambda: network([Coupling([_half()], [_half()], on_grid=True)]),
    "coupling off the grid": lambda: network(_off_grid(lambda _: Coupling([_half()], [_half()]))),
    "coupling, two blocks": lambda: network(
        [Coupling([_half(), _half()], [_half(), _half()], on_grid=True)]
    ),
    "mean of one pixel": lambda: network([], head=_one_pixel_head()),
    "dense head": lambda: network([], head=_dense_head()),
    "attention": lambda: network([Residual([_attention()], on_grid=True)]),
    "stream twice": lambda: network(_twice()),
    "voting": lambda: network([], head=_voting_head()),
    "stream read by the head": lambda: network(
        [Residual([branch()], on_grid=True)],
        head=Branch([Unit(pool=GlobalMean(), op=nn.Linear(_WIDTH, CLASSES))]),
    ),
    "forks": lambda: network(_forks()),
    "static": lambda: network(chain(LIFNode), static=True),
}


def _attention() -> Branch:
    units = [
        Unit(neuron=LIFNode(), op=nn.Conv2d(_WIDTH, 3 * _WIDTH, 1)),
        Unit(norm=nn.BatchNorm2d(3 * _WIDTH), neuron=LIFNode(), op=SpikeAttention(2, scale=2.0)),
        Unit(neuron=LIFNode(v_threshold=0.5), op=nn.Conv2d(_WIDTH, _WIDTH, 1)),
    ]
    return Branch(units, norm=nn.BatchNorm2d(_WIDTH))


def _twice() -> list[Run]:
    begin = Branch(
        [Unit(neuron=IFNode(), op=conv(_WIDTH, _WIDTH // 2))],
        norm=nn.BatchNorm2d(_WIDTH // 2),
        pool=Twice(),
    )
    return [Feed([begin]), Coupling([_half()], [_half()], on_grid=True)]


def _voting_head() -> Branch:
    hidden = Unit(
        neuron=LIFNode(),
        pool=nn.Sequential(nn.MaxPool2d(2), nn.Flatten()),
        dropout=0.5,
        op=nn.Linear(_WIDTH * 16, 4 * CLASSES, bias=False),
    )
    return Branch([hidden, Unit(neuron=LIFNode(v_threshold=0.3), op=Voting(4))])


def _forks() -> list[Run]:
    """Spikes come in; an identity; two arms; a norm in the head and none behind the arm, before the last head."""

    def arm(*, norm: bool = True) -> Branch:
        units = [
            Unit(op=conv(bias=False)),
            Unit(norm=nn.BatchNorm2d(_WIDTH), neuron=LIFNode(), op=conv()),
        ]
        return Branch(units, norm=nn.BatchNorm2d(_WIDTH) if norm else None)

    short = Branch([Unit(op=nn.Conv2d(_WIDTH, _WIDTH, 1))], norm=nn.BatchNorm2d(_WIDTH))
    normed = Unit(norm=nn.BatchNorm2d(_WIDTH), neuron=LIFNode())
    pooled = Branch([Unit(neuron=IFNode(), pool=nn.MaxPool2d(3, 1, 1))])
    forks = [
        Fork([arm()], head=None, identity=True),
        Fork([arm(), short], head=Unit(neuron=LIFNode())),
        Fork([arm(norm=False)], head=normed, identity=True),
    ]
    return [Feed([pooled]), Forks(forks)]


def _half() -> Branch:
    width = _WIDTH // 2
    return Branch(
        [Unit(neuron=LIFNode(tau=1.5, v_threshold=0.4), op=conv(width, width))],
        norm=nn.BatchNorm2d(width),
    )


@dataclass(frozen=True)
class Export:
    """One network, its data, and what the exporter wrote."""

    net: SpikingNet
    frames: "FakeFrames"
    folder: Path
    files: list[ExportedFile]


class FakeFrames:
    """Frames of a data set in memory, with the attributes of a frame cache that export uses."""

    def __init__(self, net: SpikingNet, samples: int = 24) -> None:
        rng = np.random.default_rng(11)
        self.scale = 0.25
        self.class_names = tuple(f"class {k}" for k in range(net.num_classes))
        self.test_indices = np.arange(samples, dtype=np.int64)
        shape = (samples, *net.in_shape) if net.static else (net.timesteps, samples, *net.in_shape)
        self.frames = rng.poisson(1.0, shape).astype(np.uint8)
        self.labels = rng.integers(0, net.num_classes, samples)
        self.static = net.static

    def batch(self, indices: npt.ArrayLike) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return frames and labels."""
        chosen = np.asarray(indices)
        return self.frames[chosen] if self.static else self.frames[:, chosen], self.labels[chosen]


def digest(net: SpikingNet) -> str:
    """Return a hash of all that a network holds: values, modes, gradients, structure."""
    import hashlib

    sha = hashlib.sha256(repr(net).encode())
    for name, value in sorted(net.state_dict().items()):
        sha.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    for name, module in net.named_modules():
        sha.update(f"{name}{module.training}{sorted(vars(module))}".encode())
    for parameter in net.parameters():
        sha.update(f"{parameter.requires_grad}{parameter.grad}".encode())
    return sha.hexdigest()


def rewritten(exported: Export, path: Path, **changed: object) -> Path:
    """Write the golden file of ``exported`` to ``path`` with other entries; None leaves one out."""
    with np.load(exported.folder / "golden.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    about = json.loads(bytes(arrays["about"]))
    for name, value in changed.items():
        if name in about:
            about[name] = value
        else:
            arrays[name] = value
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path
