"""What a module is to a unit: a normalization, a neuron, a piece of a tail, or nothing that a run may hold.

Two layouts: "time" is ``[T, B, ...]``, "planes" is ``[T*B, ...]``. Modules are recognized by their exact class, because
a subclass may do anything.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from revedge.neurons import (
    BaseNode,
    IFNode,
    LateResetNode,
    LIFNode,
    ParametricLIFNode,
    ReversibleNode,
)

Layout = Literal["time", "planes"]


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a unit.

    Attributes:
        kind: "norm", "neuron", "tail" (a module on planes), "dropout" (one mask for all time steps) or "skip".
        takes: the layout that the user's module is given; "any" where both will do.
        module: what the unit is given; shares the user's parameters and buffers.
        probability: of "dropout".
        source: the user's neuron, whose state the run stands in for.
        notes: what the user should know.
    """

    kind: Literal["norm", "neuron", "tail", "dropout", "skip"]
    takes: Layout | Literal["any"]
    module: nn.Module | None = None
    probability: float = 0.0
    source: nn.Module | None = None
    notes: tuple[str, ...] = field(default=())


class UnfitError(Exception):
    """A module that cannot be a part; the text says why."""


def parts_of(module: nn.Module, *, grid: bool) -> list[Part]:
    """Return the parts that ``module`` is, usually one.

    Args:
        module: a leaf of the user's model.
        grid: streams may be put on the grid, see `revedge.engine.apply`.

    Raises:
        UnfitError: a run cannot hold it.
    """
    if has_hooks(module):
        raise UnfitError("it has hooks, which a run would not call")
    for recognize in RECOGNIZERS:
        found = recognize(module, grid)
        if found is not None:
            return found
    raise UnfitError(f"{type(module).__name__} is not known to the engine")


def has_hooks(module: nn.Module) -> bool:
    """Whether something watches the calls of ``module``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def view_as(module: nn.Module, plain: type[nn.Module]) -> nn.Module:
    """Return ``module`` as an instance of ``plain``, one of its base classes: another class, the same attributes.

    The two share one ``__dict__``, so parameters, buffers and mode stay those of the user's module whatever becomes
    of them.
    """
    assert isinstance(module, plain)
    view = plain.__new__(plain)
    object.__setattr__(view, "__dict__", module.__dict__)
    return view


def norm_part(module: nn.Module, takes: Layout) -> Part:
    """Return a batch norm as a part.

    Raises:
        UnfitError: it has no weight and bias.
    """
    assert isinstance(module, _BatchNorm)
    if module.weight is None or module.bias is None:
        raise UnfitError("a batch norm without weight and bias is not known to the engine")
    return Part("norm", takes, module)


def tail_part(module: nn.Module, takes: Layout | Literal["any"]) -> Part:
    """Return a module of a tail as a part.

    Raises:
        UnfitError: it writes over its input, or returns indices.
    """
    if getattr(module, "inplace", False):
        raise UnfitError("it writes over its input (inplace=True)")
    if getattr(module, "return_indices", False):
        raise UnfitError("it returns indices too")
    if isinstance(module, nn.Identity):
        return Part("skip", "any")
    return Part("tail", takes, module)


NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# On each sample by itself; on [T, B, ...] they fail or mean something else.
ON_PLANES: tuple[type[nn.Module], ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.GroupNorm, nn.Upsample, nn.PixelShuffle, nn.ZeroPad2d, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
# The same on [T, B, ...] and on [T*B, ...].
ON_ANY: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.LayerNorm, nn.Identity, nn.Dropout, nn.AlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Sigmoid, nn.Tanh,
)  # fmt: skip


def _of_torch(module: nn.Module, grid: bool) -> list[Part] | None:
    del grid
    kind = type(module)
    if kind in NORMS:
        return [norm_part(module, "planes")]
    if isinstance(module, nn.Flatten) and kind is nn.Flatten:
        return [flatten_part(module, None)]
    if kind in ON_PLANES:
        return [tail_part(module, "planes")]
    return [tail_part(module, "any")] if kind in ON_ANY else None


def flatten_part(module: nn.Flatten, takes: Layout | None) -> Part:
    """Return a flattening of each sample as a part; ``takes`` None: its axes say which layout it means.

    Raises:
        UnfitError: it mixes samples.
    """
    if module.end_dim != -1 or module.start_dim not in (1, 2):
        raise UnfitError(f"flattening axes {module.start_dim} to {module.end_dim} mixes samples")
    if takes is None:
        takes = "planes" if module.start_dim == 1 else "time"
    return Part("tail", takes, nn.Flatten())


def _of_ours(module: nn.Module, grid: bool) -> list[Part] | None:
    if not isinstance(module, BaseNode | ReversibleNode):
        return None
    if type(module) not in (IFNode, LIFNode, LateResetNode, ParametricLIFNode, ReversibleNode):
        raise UnfitError(f"{type(module).__name__} is a neuron of the user's own")
    if module.step_mode != "m":
        raise UnfitError("it runs step by step (step_mode 's'); a run needs step_mode 'm'")
    if isinstance(module, ReversibleNode):
        if not grid:
            raise UnfitError(
                "a run would round its input to multiples of 2**-18; allow it with grid=True"
            )
        return [Part("neuron", "time", module, source=module)]
    if module.store_v_seq:
        raise UnfitError("it stores its membrane (store_v_seq), which a run does not")
    return [Part("neuron", "time", module, source=module)]


Recognizer = Callable[[nn.Module, bool], "list[Part] | None"]
RECOGNIZERS: list[Recognizer] = [_of_torch, _of_ours]
