"""The dataflow of a model's forward, as a graph of modules and functions, with the sizes left open.

What cannot be traced faithfully is refused, with the reason: branching on values, writing attributes, switching
autograd or autocast for a part (custom autograd functions do).
"""

import operator
import random
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute

from revedge.engine.adopt.over_time import OverTime
from revedge.engine.adopt.parts import has_hooks
from revedge.engine.run import Run
from revedge.neurons import BaseNode, ReversibleNode

_LIBRARIES = (
    "spikingjelly.activation_based.neuron",
    "spikingjelly.activation_based.layer",
    "snntorch.",
)


class UntraceableError(Exception):
    """The forward of ``module`` cannot be written as a graph."""

    def __init__(self, module: nn.Module, reason: str) -> None:
        super().__init__(reason)
        self.module, self.reason = module, reason


class Splat(tuple[int, ...]):
    """Sizes that stand for several arguments: ``*x.shape[2:]``, whose number is not known while tracing."""

    __slots__ = ()


def splat(sizes: Iterable[int]) -> Splat:
    """Mark ``sizes`` as several arguments."""
    return Splat(sizes)


def flatten_splats(values: Iterable[Any]) -> Iterator[Any]:
    """Put the sizes of each `Splat` in its place, in nested sequences too."""
    for value in values:
        if isinstance(value, Splat):
            yield from value
        elif isinstance(value, tuple | list):
            yield tuple(flatten_splats(value))
        else:
            yield value


def trace(
    root: nn.Module, leaves: set[nn.Module], ranks: dict[str, int], given: dict[str, Any]
) -> fx.Graph:
    """Return the graph of ``root.forward``.

    Args:
        root: traced; submodules of its own classes are traced through.
        leaves: further modules to call as they are.
        ranks: number of axes of an input, by name, where it is known.
        given: inputs that are no tensors, by name; the graph holds for these values.

    Raises:
        UntraceableError: names the innermost module whose forward failed, and why.
    """
    tracer = _Tracer(leaves, ranks)
    before = _attributes(root)
    try:
        with torch.enable_grad(), _chance_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tracer.trace(root, given)
    except UntraceableError:
        raise
    except Exception as error:  # the user's forward met a proxy: anything may come of it
        text = str(error).strip().split("\n")[0]
        raise UntraceableError(tracer.failed or root, f"{type(error).__name__}: {text}") from error
    finally:
        written = _restore(before)
    if written is not None:
        raise UntraceableError(written[0], f"forward writes the attribute {written[1]!r}")
    return graph


class _Proxy(fx.Proxy):
    """A tensor of the traced forward; one whose number of axes is known says so."""

    @property
    def _rank(self) -> int | None:
        assert isinstance(self.tracer, _Tracer)
        return (
            self.tracer.ranks.get(str(self.node.target)) if self.node.op == "placeholder" else None
        )

    def __getattr__(self, name: str) -> Any:
        if name == "shape":
            return self.tracer.create_proxy("call_function", getattr, (self, "shape"), {})
        return super().__getattr__(name)

    def __len__(self) -> int:
        # Python asks for a length before it unpacks `*x.shape[2:]`; TypeError means that there is none to be had.
        start = _sizes_from(self.node)
        rank = None if start is None else _Proxy(start[0], self.tracer)._rank
        if start is None or rank is None:
            raise TypeError("the number of axes is not known while tracing")
        return rank - start[1]

    def dim(self) -> Any:
        return (
            self._rank
            if self._rank is not None
            else self.tracer.create_proxy("call_method", "dim", (self,), {})
        )

    @property
    def ndim(self) -> Any:
        return self.dim() if self._rank is not None else Attribute(self, "ndim")


class _Tracer(fx.Tracer):
    def __init__(self, leaves: set[nn.Module], ranks: dict[str, int]) -> None:
        super().__init__()
        self.leaves, self.ranks = leaves, ranks
        self.inside: list[nn.Module] = []
        self.failed: nn.Module | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kinds = [type(m), *type(m).__mro__]
        return (
            m in self.leaves
            or "forward" in m.__dict__
            or has_hooks(m)
            or isinstance(m, BaseNode | ReversibleNode | Run | OverTime)
            or any(
                kind.__module__.startswith(_LIBRARIES) or kind.__name__ == "MemoryModule"
                for kind in kinds
            )
            or type(m).__module__.startswith("torch._dynamo")
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        self.inside.append(m)
        before = _chance()
        try:
            result = super().call_module(m, forward, args, kwargs)
            if _chance() != before:
                self._refuse("it draws random numbers that no tensor comes of")
            return result
        except Exception:
            self.failed = self.failed or m
            raise
        finally:
            self.inside.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if not torch.is_grad_enabled():
            self._refuse(
                "it switches autograd off for a part, or calls an autograd function of its own"
            )
        if (
            torch.is_autocast_enabled("cpu") != self.autocast
            or torch.is_autocast_enabled("cuda") != self.autocast_cuda
        ):
            self._refuse("it switches autocast for a part")
        return super().create_node(*args, **kwargs)

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        self.autocast = torch.is_autocast_enabled("cpu")
        self.autocast_cuda = torch.is_autocast_enabled("cuda")
        self.inside.append(root)
        before = _chance()
        graph = super().trace(root, concrete_args)
        if _chance() != before:
            self._refuse("it draws random numbers that no tensor comes of")
        return graph

    def create_arg(self, a: Any) -> Any:
        held = isinstance(a, nn.Parameter) or any(a is buffer for buffer in self.root.buffers())
        if isinstance(a, Tensor) and not held and a not in self.tensor_attrs:
            self._refuse("it makes a tensor of its own, which would be the same one in every call")
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        if _sizes_from(obj.node) is not None:
            return iter((self.create_proxy("call_function", splat, (obj,), {}),))
        return super().iter(obj)

    def _refuse(self, reason: str) -> None:
        raise UntraceableError(self.inside[-1], reason)


def _sizes_from(node: Any) -> tuple[fx.Node, int] | None:
    """The tensor whose shape ``node`` is, from some axis on to the last, and that axis."""
    if not isinstance(node, fx.Node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    of, rest = node.args[0], node.args[1:]
    whole = node.op == "call_method" and node.target == "size" and not rest
    if whole or (node.target is getattr and rest == ("shape",)):
        return of, 0
    if (
        node.target is not operator.getitem
        or not isinstance(rest[0], slice)
        or rest[0].stop is not None
    ):
        return None
    before, start = _sizes_from(of), rest[0].start or 0
    if before is None or not isinstance(start, int) or start < 0 or rest[0].step is not None:
        return None
    return before[0], before[1] + start


def _chance() -> tuple[Any, ...]:
    """The states of the generators that a forward may draw from while it is traced."""
    numpy = sys.modules.get("numpy.random")
    drawn = None if numpy is None else (numpy.get_state()[1].tobytes(), numpy.get_state()[2])
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), drawn


@contextmanager
def _chance_kept() -> Iterator[None]:
    """Leave the generators as they were."""
    numpy = sys.modules.get("numpy.random")
    state, numpy_state = random.getstate(), None if numpy is None else numpy.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.set_state(numpy_state)


_Seen = dict[nn.Module, dict[str, tuple[Any, Any]]]


def _attributes(root: nn.Module) -> _Seen:
    """Every attribute of every module, and what a list or dictionary among them holds."""
    return {
        module: {name: (value, _contents(value)) for name, value in module.__dict__.items()}
        for module in root.modules()
    }


def _contents(value: Any) -> Any:
    return type(value)(value) if type(value) in (list, dict, set) else None


def _restore(before: _Seen) -> tuple[nn.Module, str] | None:
    """Put back what tracing wrote; return the first module and attribute that it wrote."""
    written: tuple[nn.Module, str] | None = None
    for module, attributes in before.items():
        now = module.__dict__
        for name in [*attributes, *(name for name in now if name not in attributes)]:
            value, contents = attributes.get(name, (None, None))
            same = name in now and name in attributes and now[name] is value
            if same and (contents is None or _same(contents, value)):
                continue
            written = written or (module, name)
            if name not in attributes:
                del now[name]
                continue
            if contents is not None:
                value.clear()
                value.extend(contents) if isinstance(value, list) else value.update(contents)
            now[name] = value
    return written


def _same(contents: Any, value: Any) -> bool:
    if len(contents) != len(value):
        return False
    if isinstance(value, dict):
        return all(key in value and value[key] is item for key, item in contents.items())
    return (
        contents == value
        if isinstance(value, set)
        else all(a is b for a, b in zip(contents, value, strict=True))
    )
