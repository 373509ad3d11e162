"""How runs, branches and units of an inference form are written as ONNX nodes: one rule per type.

Layers are in onnx_layers.py, grids in onnx_grids.py, neurons in onnx_neurons.py.
"""

import copy

import torch
from torch import Tensor, nn

from revedge.engine.unit import GRID_BITS
from revedge.export import onnx_grids, onnx_layers  # noqa: F401 - their modules find their rules, too
from revedge.export.blocks import (
    BranchStep,
    CouplingStep,
    FeedStep,
    Grid,
    ResidualStep,
    UnitStep,
)
from revedge.export.cells import NoCell
from revedge.export.exact_layers import Snap
from revedge.export.fork_steps import ForksStep, ForkStep
from revedge.export.onnx_integers import in_integers, pays, product
from revedge.export.onnx_step import OFFSET, StepGraph, rule
from revedge.models.snapping import FINEST_BITS

_BLOCK = 16  # channels that onnxruntime's convolution takes at a time; 8 without AVX-512
_Product = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WIDER = {3: (1, 1), 4: (1, 0)}  # columns of a plane -> columns of zeros


@rule(FeedStep, multiples=True)
def _feed(g: StepGraph, module: FeedStep, x: str) -> str:
    out = g.apply(module.first, x, "first")
    for index, branch in enumerate(module.others):
        out = _added(g, out, branch, x, f"others.{index}")
    return out


def _added(g: StepGraph, stream: str, branch: nn.Module, x: str, name: str) -> str:
    """``stream`` and what ``branch`` makes of ``x``, whose rounding leaves the opposite of the stream's offset."""
    g.wanted = -g.offsets[stream] if stream in g.offsets else None
    return g.together("Add", [stream, g.apply(branch, x, name)], "stream")


@rule(ResidualStep, multiples=True, offsets=True)
def _residual(g: StepGraph, module: ResidualStep, x: str) -> str:
    x = g.apply(module.entry, x, "entry")
    for index, branch in enumerate(module.branches):
        x = _added(g, x, branch, x, f"branches.{index}")
    return x


@rule(CouplingStep, multiples=True, offsets=True)
def _coupling(g: StepGraph, module: CouplingStep, x: str) -> str:
    x = g.apply(module.entry, x, "entry")
    halves = g.split(x, 1, module.width, module.width, label="half")
    for known in (g.times, g.offsets):
        known.update({half: known[x] for half in halves if x in known})
    written, read = halves
    for index, branch in enumerate(module.branches):
        written, read = read, _added(g, written, branch, read, f"branches.{index}")
    return g.join([written, read])


@rule(ForksStep, multiples=True)
def _forks(g: StepGraph, module: ForksStep, x: str) -> str:
    for index, fork in enumerate(module.forks):
        x = g.apply(fork, x, f"forks.{index}")
    return x


@rule(ForkStep, multiples=True)
def _fork(g: StepGraph, module: ForkStep, x: str) -> str:
    s = g.apply(module.head, x, "head")
    out = g.apply(module.first, s, "first")
    if module.identity:
        out = g.together("Add", [s, out], "sum")
    for index, arm in enumerate(module.others):
        out = _added(g, out, arm, s, f"others.{index}")
    return out


@rule(BranchStep, multiples=True)
def _branch(g: StepGraph, module: BranchStep, x: str) -> str:
    # What is rounded to a grid is an integer times its step: a power of two, which goes into the weights before it.
    larger = module.close.up if isinstance(module.close, Grid) else 1.0
    wanted, g.wanted = g.wanted or OFFSET, None
    for index, unit in enumerate(module.units):
        g.larger = larger if index + 1 == len(module.units) else 1.0
        x = g.apply(unit, x, f"units.{index}")
    g.larger = 1.0
    if isinstance(module.close, Grid) and module.close.up == 2.0**GRID_BITS and g.keeps_integers:
        g.wanted = wanted
    x = g.apply(module.close, x, "close")
    g.wanted = None
    return x


@rule(UnitStep, multiples=True)
def _unit(g: StepGraph, module: UnitStep, x: str) -> str:
    larger, g.larger = g.larger, 1.0
    for name in ("head", "cell", "tail"):
        g.columns = _columns(g, module.tail) if name == "cell" else (0, 0)
        g.larger = larger if name == "tail" else 1.0
        x = g.apply(getattr(module, name), x, name)
    return x


def _columns(g: StepGraph, tail: nn.Module) -> tuple[int, int]:
    """Columns of zeros that should stand left and right of the spikes, so that ``tail`` need not add them itself.

    onnxruntime's convolution computes three outputs of a row at a time, or six, but one by one those that need a column
    of its own zeros, and those that are left over: all of them in rows of 3 and 4. Measured at 256 channels and 4x4: a
    third of the time. What it saves in longer rows is less than the columns cost.
    """
    assert isinstance(tail, nn.Sequential)
    parts = [part for part in tail if not isinstance(part, nn.Identity)]
    conv = parts[0] if parts else None
    if not (g.keeps_integers and g.states and not g.short and isinstance(conv, nn.Conv2d)):
        return 0, 0
    shape = g.shapes[g.states[0]]
    if g.integers and isinstance(parts[-1], Snap) and pays(conv, shape):
        return 0, 0
    given = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    if given != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or len(shape) != 3 or shape[0] % _BLOCK:
        return 0, 0
    return _WIDER.get(shape[2], (0, 0))


@rule(NoCell, nn.Identity, nn.Dropout, multiples=True, offsets=True)
def _nothing(_g: StepGraph, _module: nn.Module, x: str) -> str:
    return x


@rule(nn.Sequential, multiples=True)
def _in_turn(g: StepGraph, module: nn.Sequential, x: str) -> str:
    parts, larger, g.larger = list(module), g.larger, 1.0
    written: nn.Module | None = None
    for index, part in enumerate(parts):
        if part is written:
            continue
        behind = parts[index + 1] if index + 1 < len(parts) else None
        if isinstance(behind, Snap) and in_integers(part, g, x):
            times, written = _steps_of(behind) if g.keeps_integers else 1.0, behind
            with g.within(str(index)):
                x = product(g, part, behind, x, times)
            g.times[x] = times
            continue
        times, factor = 1.0, torch.ones(1)
        if behind is None:
            times, factor = larger, factor * larger
        elif g.keeps_integers and isinstance(behind, Snap):
            times = _steps_of(behind)
            factor = times * behind.up * behind.scale
        if times != 1.0 and isinstance(part, _PRODUCTS):
            x = g.apply(_times(part, factor), x, str(index))
            g.times[x] = times
        else:
            x = g.apply(part, x, str(index))
    return x


def _steps_of(snap: Snap) -> float:
    """Values behind are multiples of one over this: 2^12, so that they can be added as integers, or more if need be."""
    return max(2.0**FINEST_BITS, 1.0 / float(snap.scale.min()))


def _times(op: _Product, factor: Tensor) -> _Product:
    """An operator whose outputs are powers of two times larger, channel by channel; so are its weights."""
    made = copy.deepcopy(op)
    with torch.no_grad():
        made.weight.mul_(factor.reshape([-1] + [1] * (op.weight.dim() - 1)))
        if made.bias is not None:
            made.bias.mul_(factor)
    return made
