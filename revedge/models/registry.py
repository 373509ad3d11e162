"""Names of models, and how each is built."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from revedge.errors import UsageError
from revedge.models import ms_resnet, revsresnet, vgg
from revedge.models.net import SpikingNet
from revedge.models.parts import neuron_maker, scaled, spread
from revedge.models.task import MakeNeuron, Task

_VGG: dict[str, list[int | str]] = {
    "vgg5": [32, "M", 64, "M", 128],
    "vgg-iso10": [32] * 10,  # ten equal blocks without pooling
    "vgg11": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg13": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg16": [
        64,
        64,
        "M",
        128,
        128,
        "M",
        256,
        256,
        256,
        "M",
        512,
        512,
        512,
        "M",
        512,
        512,
        512,
        "M",
    ],
    "vgg19": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """Defaults of one named model; ``widths`` and ``blocks`` for staged nets, ``layers`` for VGG."""

    family: str
    widths: Sequence[int] = ()
    blocks: Sequence[int] = ()
    layers: Sequence[int | str] = ()
    neuron: str = "if"
    tau: float = 2.0
    surrogate: str = "atan"
    dvs_stem: bool = False


def _rev(blocks: Sequence[int], widths: Sequence[int] = (16, 32), **options: Any) -> _Member:
    return _Member(family="revsresnet", widths=widths, blocks=blocks, **options)


def _ms(blocks: Sequence[int], widths: Sequence[int] = (32, 64), **options: Any) -> _Member:
    return _Member(family="ms-resnet", widths=widths, blocks=blocks, **options)


# Small members (two or three stages) are for small frames; the others are the published nets.
_DVS: dict[str, Any] = {"neuron": "lif", "tau": 1.5, "surrogate": "sigmoid", "dvs_stem": True}
_MEMBERS: dict[str, _Member] = {
    "revsresnet11": _rev([1, 1]),
    "revsresnet16": _rev([1, 1, 1], (16, 32, 64)),
    "revsresnet19": _rev([2, 2]),
    "revsresnet27": _rev([3, 3]),
    "revsresnet35": _rev([4, 4]),
    "revsresnet67": _rev([8, 8]),
    "revsresnet21": _rev([1, 1, 1, 1], [64, 128, 256, 448]),
    "revsresnet37": _rev([1, 2, 3, 2], [64, 128, 256, 448]),
    "revsresnet24": _rev([1, 2, 2], [16, 32, 48], **_DVS),
    "ms-resnet6": _ms([1, 1]),
    "ms-resnet10": _ms([2, 2]),
    "ms-resnet18": _ms([2, 2, 2, 2], [64, 128, 256, 512]),
    "ms-resnet34": _ms([3, 4, 6, 3], [64, 128, 256, 512]),
    "ms-resnet20": _ms([3, 3, 3], [16, 32, 64], **_DVS),
    **{name: _Member(family="vgg", layers=layers, neuron="lif") for name, layers in _VGG.items()},
}


def names() -> list[str]:
    """Names of all models."""
    return list(_MEMBERS)


def families() -> dict[str, list[str]]:
    """Members of each family."""
    found: dict[str, list[str]] = {}
    for name, member in _MEMBERS.items():
        found.setdefault(member.family, []).append(name)
    return found


def create(
    name: str,
    *,
    in_shape: Sequence[int],
    num_classes: int,
    timesteps: int,
    static: bool = False,
    neuron: str | None = None,
    tau: float | None = None,
    surrogate: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    strategy: str | Sequence[str] = "reverse",
) -> SpikingNet:
    """Build a model by name.

    Args:
        name: one of `names`.
        in_shape: (C, H, W) of a frame or image.
        num_classes: number of classes, at least 2.
        timesteps: T, at least 1.
        static: the input is one image per sample instead of T frames.
        neuron: "if", "lif", "plif" or, for VGG, "reversible"; default: the published one.
        tau: membrane time constant in steps, > 1, for lif and plif.
        surrogate: "atan", "sigmoid", "rectangle" or "triangle".
        width: channels of the first stage; the others scale with it.
        depth: number of blocks over all stages (staged nets only).
        strategy: memory strategy of all runs, or a list with one per run.

    Raises:
        UsageError: something of this is not known or not possible.
    """
    config = {
        key: value for key, value in locals().items() if value is not None and key != "strategy"
    }
    member = _member(name)
    shape = _checked_shape(in_shape)
    _check_counts(num_classes, timesteps)
    config["in_shape"] = list(shape)
    task = Task(
        in_shape=shape,
        num_classes=num_classes,
        timesteps=timesteps,
        static=static,
        neuron=_neuron(member, neuron, tau, surrogate),
        config=config,
    )
    if member.family == "vgg":
        if depth is not None:
            raise UsageError(
                f"depth={depth} does not apply to {name}; choose another member: {', '.join(_VGG)}"
            )
        sizes = [layer for layer in member.layers if isinstance(layer, int)]
        scaled_sizes = iter(scaled(sizes, width))
        layers = [
            next(scaled_sizes) if isinstance(layer, int) else layer for layer in member.layers
        ]
        net = vgg.build(task, layers=layers)
    else:
        blocks = list(member.blocks) if depth is None else spread(depth, len(member.blocks))
        build = revsresnet.build if member.family == "revsresnet" else ms_resnet.build
        widths = scaled(member.widths, width)
        net = build(task, widths=widths, blocks=blocks, dvs_stem=member.dvs_stem)
    net.set_strategy(strategy)
    return net


def _neuron(
    member: _Member, neuron: str | None, tau: float | None, surrogate: str | None
) -> MakeNeuron:
    return neuron_maker(
        neuron or member.neuron,
        tau=member.tau if tau is None else tau,
        surrogate=surrogate or member.surrogate,
        allow_reversible=member.family == "vgg",
    )


def _member(name: str) -> _Member:
    if name not in _MEMBERS:
        close = difflib.get_close_matches(name, _MEMBERS, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(_MEMBERS)}"
        raise UsageError(f"model {name!r} is not known; {hint}")
    return _MEMBERS[name]


def _checked_shape(in_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise UsageError(
            f"in_shape={tuple(in_shape)} is not (channels, height, width), each 1 or more"
        )
    channels, height, width = (int(size) for size in in_shape)
    return channels, height, width


def _check_counts(num_classes: int, timesteps: int) -> None:
    if num_classes < 2:
        raise UsageError(f"num_classes={num_classes} leaves nothing to choose from; use 2 or more")
    if timesteps < 1:
        raise UsageError(f"timesteps={timesteps} is not a number of time steps; use 1 or more")
