"""Pieces that several models share: neurons by name, convolutions, branches, heads."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from revedge.engine import Branch, Feed, GlobalMean, Unit
from revedge.errors import UsageError
from revedge.models.task import MakeNeuron
from revedge.neurons import IFNode, LIFNode, ParametricLIFNode, ReversibleNode


def neuron_maker(
    name: str, *, tau: float, surrogate: str, allow_reversible: bool = False
) -> MakeNeuron:
    """Return a function that makes one neuron; threshold 1, hard reset to 0, reset detached, as in both papers.

    Raises:
        UsageError: unknown neuron, or the reversible one where its real-valued output does not fit.
    """
    common: dict[str, Any] = {"v_reset": 0.0, "detach_reset": True, "surrogate": surrogate}
    makers: dict[str, MakeNeuron] = {
        "if": lambda *, v_threshold=1.0: IFNode(v_threshold=v_threshold, **common),
        "lif": lambda *, v_threshold=1.0: LIFNode(tau=tau, v_threshold=v_threshold, **common),
        "plif": lambda *, v_threshold=1.0: ParametricLIFNode(
            init_tau=tau, v_threshold=v_threshold, **common
        ),
    }
    if allow_reversible:
        # Two groups over channels, dimension 2 of [T, B, C, ...]: widths are even everywhere, image sides are not.
        makers["reversible"] = lambda *, v_threshold=1.0: ReversibleNode(
            groups=2, tau=tau, v_threshold=v_threshold, surrogate=surrogate, dim=2
        )
    if name not in makers:
        raise UsageError(f"neuron {name!r} is not known here; choose one of {', '.join(makers)}")
    return makers[name]


def conv(
    c_in: int, c_out: int, kernel: int = 3, stride: int = 1, *, bias: bool = False
) -> nn.Conv2d:
    """Return a convolution that keeps the size at stride 1; Kaiming normal, fan-out."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def basic_branch(neuron: MakeNeuron, c_in: int, c_out: int, stride: int = 1) -> Branch:
    """neuron-conv3x3-BN-neuron-conv3x3-BN: the pre-activation branch of MS-ResNet and F, G of RevSResNet."""
    return Branch(
        [
            Unit(neuron=neuron(), op=conv(c_in, c_out, 3, stride)),
            Unit(norm=nn.BatchNorm2d(c_out), neuron=neuron(), op=conv(c_out, c_out)),
        ],
        norm=nn.BatchNorm2d(c_out),
    )


def stem(c_in: int, c_out: int, *, dvs_pool: nn.Module | None = None) -> Feed:
    """conv3x3-BN, or for large event frames conv3x3 stride 2-BN-pool; analog, no neuron."""
    stride = 1 if dvs_pool is None else 2
    return Feed(
        [Branch([Unit(op=conv(c_in, c_out, 3, stride))], norm=nn.BatchNorm2d(c_out), pool=dvs_pool)]
    )


def head(neuron: MakeNeuron, c_in: int, num_classes: int) -> Feed:
    """neuron-global average-linear, at every time step."""
    return Feed(
        [Branch([Unit(neuron=neuron(), pool=GlobalMean(), op=nn.Linear(c_in, num_classes))])]
    )


def spread(total: int, stages: int) -> list[int]:
    """Spread ``total`` blocks over ``stages``, the earlier ones getting what is left over; at least one each.

    >>> spread(7, 3)
    [3, 2, 2]

    Raises:
        UsageError: there are fewer blocks than stages.
    """
    if total < stages:
        raise UsageError(
            f"depth {total} is less than one block for each of {stages} stages; use depth >= {stages}"
        )
    return [total // stages + (index < total % stages) for index in range(stages)]


def scaled(widths: Sequence[int], width: int | None) -> list[int]:
    """Scale ``widths`` so that the first is ``width``.

    Raises:
        UsageError: ``width`` is less than 1 channel.
    """
    if width is None:
        return list(widths)
    if width < 1:
        raise UsageError(f"width {width} is not a number of channels; use 1 or more")
    return [max(1, round(w * width / widths[0])) for w in widths]
