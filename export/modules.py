"""Modules written for SpikingJelly or snnTorch, or in plain PyTorch with our neurons, as a `revedge.SpikingNet`.

What is recognized, and how, is the business of `revedge.engine.adopt`, which trains such modules. Here the neurons are
replaced first: for the forward alone a surrogate does not matter, a learned leak is a number, and it is the same
whether a module is written for one step or for all of them. The reset stays what it is: hard to any value, or soft.
"""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from revedge.engine import Branch, Feed, OverTime, Run, Unit
from revedge.engine.adopt import functions, snntorch, spikingjelly
from revedge.engine.adopt.parts import Layout, Part, UnfitError, parts_of
from revedge.engine.adopt.piece import Piece
from revedge.engine.adopt.program import Program
from revedge.engine.adopt.sizes import is_size, refold, spell_out
from revedge.engine.adopt.trace import UntraceableError, trace
from revedge.engine.adopt.units import units_of
from revedge.errors import ExportError
from revedge.models import SpikingNet
from revedge.neurons import BaseNode, Surrogate

_SHAPES = {"time": "[T, B, ...]", "planes": "[B, ...]"}


def import_module(
    module: nn.Module, *, in_shape: tuple[int, int, int], timesteps: int, static: bool = False
) -> SpikingNet:
    """Return a network with the weights and the neurons of ``module``, which `export_network` writes to any format.

    Read are neurons IF, LIF and PLIF of SpikingJelly and of `revedge.neurons`, in single-step or multi-step mode, and
    ``Leaky`` of snnTorch inside a Sequential or an `OverTime`; with what torch.nn and SpikingJelly offer of layers.
    The module may be a chain, or a net whose residual and coupling blocks begin with a neuron or a norm and end in a
    batch norm; their streams are rounded to multiples of 2**-14, as everywhere here, so that single spikes may differ
    in such nets. Values in between and states are dropped: every recording starts from rest.

    Args:
        module: gives ``[T, B, K]``, its mean over time, or ``[B, K]`` per step. It is copied and stays as it is.
        in_shape: (C, H, W) of a frame or image.
        timesteps: T of its recordings.
        static: the input is an image, shown T times.

    Returns:
        A network in eval mode; its prediction is the mean of the module's output over time.

    Memory: the weights once more. Raises:
        ExportError: something in it has no counterpart here; names the layer and the reason.
    """
    whole = copy.deepcopy(module).eval()
    stepwise = _replace_neurons(whole)
    runs = _runs(whole, stepwise)
    if len(runs) == 1:
        units = runs[0].branch_list()[0].unit_list() if isinstance(runs[0], Feed) else []
        runs = [_feed(units[:1]), _feed(units[1:])] if len(units) > 1 else runs
    stem = runs.pop(0) if isinstance(runs[0], Feed) else _feed([])
    head = runs.pop() if runs and isinstance(runs[-1], Feed) else _feed([])
    assert isinstance(stem, Feed)
    assert isinstance(head, Feed)
    net = SpikingNet(
        stem=stem,
        body=runs,
        head=head,
        in_shape=in_shape,
        num_classes=1,
        timesteps=timesteps,
        static=static,
        config={"name": "imported", "module": type(module).__name__},
    )
    net.num_classes = _classes(net)
    return net.eval()


def _replace_neurons(whole: nn.Module) -> bool:
    """Put neurons of ours in the place of others; return whether the module is written for one step."""
    stepwise = False
    held = {part for one in whole.modules() if isinstance(one, OverTime) for part in one.children()}
    for name, module in list(whole.named_modules(remove_duplicate=False)):
        if module in held:
            continue
        try:
            node = _neuron(module)
        except UnfitError as reason:
            raise ExportError(f"{name or type(module).__name__}: {reason}") from None
        if node is not None:
            stepwise = (
                stepwise or getattr(module, "step_mode", None) == "s" or _of(module, "snntorch.")
            )
            if not name:
                raise ExportError("a neuron alone is no network; import the module that holds it")
            whole.set_submodule(name, node)
        elif _of(module, "spikingjelly.") and hasattr(module, "step_mode"):
            module.step_mode = "m"
    return stepwise


def _neuron(module: nn.Module) -> BaseNode | None:
    kinds = type(module).__mro__
    if _of(module, "spikingjelly.activation_based.neuron"):
        return spikingjelly.neuron_of(module, Surrogate())
    if isinstance(module, OverTime):
        return snntorch.neuron_of(module.neuron, Surrogate())
    if any(kind.__name__ == "SpikingNeuron" and _of_type(kind, "snntorch.") for kind in kinds):
        return snntorch.neuron_of(module, Surrogate())
    if isinstance(module, BaseNode) and module.step_mode == "s":
        node = copy.deepcopy(module)
        node.step_mode = "m"
        return node
    return None


def _of(module: nn.Module, library: str) -> bool:
    return _of_type(type(module), library)


def _of_type(kind: type, library: str) -> bool:
    return kind.__module__.startswith(library)


def _runs(whole: nn.Module, stepwise: bool) -> list[Run]:
    """The module as runs: a chain as it stands, or with its blocks made runs first."""
    try:
        return _Walk(whole, _graph(whole), stepwise).runs
    except _BranchesError:
        graph = _graph(whole)
        Program(whole, graph, grid=True)  # rewrites the graph
        return _Walk(whole, graph, stepwise).runs


def _graph(whole: nn.Module) -> fx.Graph:
    try:
        graph = trace(whole, set(), {}, {})
        spell_out(graph)
        return graph
    except UntraceableError as failure:
        names = {module: name for name, module in whole.named_modules()}
        name = names.get(failure.module, "") or type(failure.module).__name__
        raise ExportError(
            f"{name}: its forward cannot be read as a chain of layers ({failure.reason}); leave loops over time to "
            "step mode 'm' or to revedge.engine.OverTime"
        ) from None


class _BranchesError(ExportError):
    """A value is read by two, or a function reads two."""


class _Walk:
    """Goes along the only path through a graph and collects its runs."""

    def __init__(self, whole: nn.Module, graph: fx.Graph, stepwise: bool) -> None:
        self.modules = dict(whole.named_modules(remove_duplicate=False))
        self.stepwise = stepwise
        self.layout: Layout | None = "planes" if stepwise else None
        self.parts: list[Part] = []
        self.runs: list[Run] = []
        self.seen: set[str] = set()
        at: fx.Node | None = None
        done = False
        for node in graph.nodes:
            if is_size(node) or (node.op == "placeholder" and not node.users):
                continue
            if at is not None:
                self.require_path(node, at)
            if node.op == "output":
                break
            if done:
                raise ExportError(f"{_name(node)} stands behind the mean over time")
            if node.op != "placeholder":
                done = self.node(node)
            elif at is not None:
                raise ExportError("the module takes more than one input")
            at = node
        self.flush()
        if not self.runs:
            raise ExportError("the module holds no layer")

    def require_path(self, node: fx.Node, at: fx.Node) -> None:
        read = [one for one in node.all_input_nodes if not is_size(one)]
        if read != [at]:
            raise _BranchesError(
                f"{_name(node)} does not read what the layer before it gives, and is no residual or coupling block "
                "that ends in a batch norm; only chains of layers and such blocks can be imported"
            )

    def node(self, node: fx.Node) -> bool:
        """Take one node; return whether it is the mean over time."""
        change = refold(node)
        if isinstance(node.target, Piece):
            self.flush()
            self.runs += node.target.runs
            self.layout = node.target.gives
        elif change is not None:
            self.layout = change.to
            if change.flattens:
                self.parts.append(Part("tail", "any", nn.Flatten()))
        elif _is_time_mean(node) and self.layout != "planes":
            return True
        else:
            for part in self.parts_of(node):
                self.move(node, part)
        return False

    def parts_of(self, node: fx.Node) -> list[Part]:
        if node.op != "call_module":
            part = functions.part_of(node, self.layout)
            if part is None:
                raise ExportError(f"{_name(node)} is no layer that can be imported")
            return [part]
        name = str(node.target)
        try:
            parts = parts_of(self.modules[name], grid=True)
        except UnfitError as reason:
            raise ExportError(f"{name}: {reason}") from None
        if name in self.seen and any(part.kind == "neuron" for part in parts):
            raise ExportError(f"{name}: its state goes through several calls in one forward")
        self.seen.add(name)
        return parts

    def move(self, node: fx.Node, part: Part) -> None:
        takes = "planes" if self.stepwise and part.takes == "time" else part.takes
        if takes != "any":
            if self.layout not in (None, takes):
                assert self.layout is not None
                raise ExportError(
                    f"{_name(node)} is given {_SHAPES[self.layout]} where it takes {_SHAPES[takes]}"
                )
            self.layout = takes
        self.parts.append(part)

    def flush(self) -> None:
        if self.parts:
            self.runs.append(_feed(units_of(self.parts)))
        self.parts = []


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else f"the function {node.name!r}"


def _is_time_mean(node: fx.Node) -> bool:
    """Whether this is ``x.mean(0)``."""
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    named = node.target == "mean" if node.op == "call_method" else node.target is torch.mean
    return named and axis in (0, (0,), [0]) and not node.kwargs.get("keepdim")


def _feed(units: list[Unit]) -> Feed:
    return Feed([Branch(units or [Unit()])])


def _classes(net: SpikingNet) -> int:
    """How many values a step gives."""
    try:
        with torch.no_grad():
            logits: Any = net.step(torch.zeros(1, *net.in_shape), net.initial_states(1))[0]
    except (RuntimeError, ValueError, StopIteration) as error:
        line = (str(error).strip().splitlines() or ["no parameters"])[0]
        raise ExportError(f"frames of shape {net.in_shape} do not fit: {line[:200]}") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ExportError(
            f"a step gives {tuple(logits.shape)}, a prediction is [B, K]; end the module in a linear layer, or in "
            "neurons of one axis"
        )
    return int(logits.shape[1])
