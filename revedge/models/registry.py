"""Names of models, and how each is built."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from revedge.errors import UsageError
from revedge.models import (
    ms_resnet,
    plif_net,
    preact_resnet,
    revsformer,
    revsresnet,
    spiking_resnet,
    spikingformer,
    vgg,
)
from revedge.models.member import Member, Size
from revedge.models.net import SpikingNet
from revedge.models.parts import neuron_maker
from revedge.models.task import MakeNeuron, Task
from revedge.models.user_model import build_user_model
from revedge.user_code import is_user_model

# Members of each family; published nets and, where small frames need them, smaller ones.
_FAMILIES: dict[str, Mapping[str, Member]] = {
    "revsresnet": revsresnet.MEMBERS,
    "ms-resnet": ms_resnet.MEMBERS,
    "resnet": spiking_resnet.MEMBERS,
    "preact-resnet": preact_resnet.MEMBERS,
    "vgg": vgg.MEMBERS,
    "plif-net": plif_net.MEMBERS,
    "spikingformer": spikingformer.MEMBERS,
    "revsformer": revsformer.MEMBERS,
}
_MEMBERS = {name: member for members in _FAMILIES.values() for name, member in members.items()}


def names() -> list[str]:
    """Names of all models."""
    return list(_MEMBERS)


def families() -> dict[str, list[str]]:
    """Members of each family."""
    return {family: list(members) for family, members in _FAMILIES.items()}


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
    heads: int | None = None,
    strategy: str | Sequence[str] = "reverse",
    **options: Any,
) -> SpikingNet:
    """Build a model by name.

    A name of the form ``module:function`` or ``path/to/file.py:function`` is code of the user's: the function is called
    with in_shape, num_classes, timesteps and those of the arguments below, from ``neuron`` to ``options``, that are
    given; see `revedge.models.user_model`. Naming it runs its code.

    Args:
        name: one of `names`, or where a function of one's own lies.
        in_shape: (C, H, W) of a frame or image.
        num_classes: number of classes, at least 2.
        timesteps: T, at least 1.
        static: the input is one image per sample instead of T frames.
        neuron: "if", "lif", "plif" or, where the net allows it, "reversible"; default: the published one.
        tau: membrane time constant in steps, > 1, for lif and plif.
        surrogate: "atan", "sigmoid", "rectangle" or "triangle".
        width: channels of the first stage; the others scale with it.
        depth: number of blocks over all stages, where there are blocks.
        heads: attention heads, where there is attention; default: as many of the published ones as divide the width.
        strategy: memory strategy of all runs, or a list with one per run.
        options: further arguments of a function of one's own: plain values.

    Raises:
        UsageError: something of this is not known or not possible.
    """
    config = {
        key: value
        for key, value in locals().items()
        if value is not None and key not in ("strategy", "options")
    } | options
    shape = _checked_shape(in_shape)
    _check_counts(num_classes, timesteps)
    config["in_shape"] = list(shape)
    if is_user_model(name):
        return build_user_model(config, strategy)
    if options:
        raise TypeError(f"create() got an unexpected keyword argument {next(iter(options))!r}")
    member = _member(name)
    task = Task(
        in_shape=shape,
        num_classes=num_classes,
        timesteps=timesteps,
        static=static,
        neuron=_neuron(member, neuron, tau, surrogate),
        config=config,
    )
    net = member.build(task, Size(width=width, depth=depth, heads=heads))
    net.set_strategy(strategy)
    return net


def _neuron(
    member: Member, neuron: str | None, tau: float | None, surrogate: str | None
) -> MakeNeuron:
    return neuron_maker(
        neuron or member.neuron,
        tau=member.tau if tau is None else tau,
        surrogate=surrogate or member.surrogate,
        allow_reversible=member.allow_reversible,
    )


def _member(name: str) -> Member:
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
