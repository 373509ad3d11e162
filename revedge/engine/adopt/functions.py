"""Functions of a traced forward that a unit's tail may hold, as modules on planes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from revedge.engine.adopt.parts import Layout, Part
from revedge.engine.adopt.sizes import plane_flatten
from revedge.engine.unit import GlobalMean
from revedge.errors import UsageError

_POOLS: dict[Any, Callable[..., nn.Module]] = {
    F.avg_pool2d: nn.AvgPool2d,
    F.max_pool2d: nn.MaxPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.avg_pool1d: nn.AvgPool1d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
}
_ELEMENTWISE = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    torch.sigmoid: nn.Sigmoid,
}


class MeanOver(nn.Module):
    """Mean over the last axes of a plane.

    Args:
        axes: negative.
        keepdim: keep them with size 1.
    """

    def __init__(self, axes: tuple[int, ...], *, keepdim: bool) -> None:
        super().__init__()
        self.axes, self.keepdim = axes, keepdim

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of ``x`` ``[N, ...]``.

        Raises:
            UsageError: the axes reach into those of samples.
        """
        if x.dim() <= -min(self.axes):
            raise UsageError(
                f"a mean over the axes {self.axes} of {tuple(x.shape)} mixes samples; leave it out of apply"
            )
        return x.mean(self.axes, keepdim=self.keepdim)


def part_of(node: fx.Node, layout: Layout | None) -> Part | None:
    """Return what a function or method call is in a tail whose tensor has ``layout`` (None: not known yet)."""
    if node.op == "call_method" and node.target == "contiguous" and len(node.args) == 1:
        return Part("skip", "any")
    flattens = plane_flatten(node)
    if flattens is not None:
        wanted: Layout = "planes" if flattens == 1 else "time"
        return Part("tail", wanted, nn.Flatten()) if layout in (None, wanted) else None
    if node.op == "call_function" and node.target in _ELEMENTWISE and len(node.args) == 1:
        return (
            None if node.kwargs.get("inplace") else Part("tail", "any", _ELEMENTWISE[node.target]())
        )
    if node.op == "call_function" and node.target in _POOLS:
        settings, options = node.args[1:], node.kwargs
        constant = not any(isinstance(one, fx.Node) for one in (*settings, *options.values()))
        if constant and not options.get("return_indices"):
            return Part("tail", "planes", _POOLS[node.target](*settings, **options))
    return _mean(node)


def _mean(node: fx.Node) -> Part | None:
    if not (node.target == "mean" if node.op == "call_method" else node.target is torch.mean):
        return None
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    given = list(axes) if isinstance(axes, tuple | list) else [axes]
    # Counted from the end, axes are the same in both layouts.
    negative = [axis for axis in given if isinstance(axis, int) and axis < 0]
    if not given or len(negative) != len(given):
        return None
    if not keepdim and sorted(negative) == [-2, -1]:
        return Part("tail", "any", GlobalMean())
    return Part("tail", "any", MeanOver(tuple(negative), keepdim=bool(keepdim)))
