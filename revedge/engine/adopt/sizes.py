"""Sizes in a traced graph, with T and B left open: what a reshape does to the layout of a tensor."""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from revedge.engine.adopt.parts import Layout
from revedge.engine.adopt.trace import splat

Size = int | tuple[str, ...] | None  # a number, a product of named sizes, or not known


@dataclass(frozen=True, slots=True)
class Axes:
    """How a tensor begins: "time" with T and B, "planes" with T*B; ``t`` and ``b`` name the two."""

    layout: Layout
    t: str
    b: str

    @property
    def first(self) -> tuple[str, ...]:
        """The first axis."""
        return (self.t,) if self.layout == "time" else tuple(sorted((self.t, self.b)))


@dataclass(slots=True)
class Sizes:
    """What is known of the tensors of a graph."""

    axes: dict[fx.Node, Axes] = field(default_factory=dict)

    def axis(self, node: fx.Node, index: int) -> Size:
        """Size ``index`` of the tensor ``node``."""
        known = self.axes.get(node)
        if known is not None and index == 0:
            return known.first
        if known is not None and known.layout == "time" and index == 1:
            return (known.b,)
        return (f"{node.name}#{index}",)

    def of(self, value: Any) -> Size:
        """What ``value``, an argument in the graph, is as a size."""
        if isinstance(value, int):
            return value
        if not isinstance(value, fx.Node):
            return None
        at = origin(value)
        if at is not None:
            return self.axis(*at)
        if value.op == "call_function" and len(value.args) == 2:
            a, b = self.of(value.args[0]), self.of(value.args[1])
            if value.target is operator.mul and isinstance(a, tuple) and isinstance(b, tuple):
                return tuple(sorted(a + b))
            if value.target is operator.floordiv and isinstance(a, tuple) and isinstance(b, tuple):
                return _without(a, b)
        return None


def _without(product: tuple[str, ...], factors: tuple[str, ...]) -> Size:
    rest = list(product)
    for factor in factors:
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest) or 1


def origin(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The tensor and axis whose size ``node`` is."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        base, index = node.args
        return (
            (base, index)
            if isinstance(base, fx.Node) and isinstance(index, int) and index >= 0
            else None
        )
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    of, index = node.args
    whole = tail_of(of)
    if whole is None or not isinstance(index, int) or index < 0:
        return None
    return whole[0], whole[1] + index


def tail_of(node: Any) -> tuple[fx.Node, int] | None:
    """The tensor whose shape ``node`` is from some axis on (``x.shape``, ``x.shape[2:]``), and that axis."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_method" and node.target == "size" and len(node.args) == 1:
        return (node.args[0], 0) if isinstance(node.args[0], fx.Node) else None
    if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
        return (node.args[0], 0) if isinstance(node.args[0], fx.Node) else None
    if (
        node.op == "call_function"
        and node.target is operator.getitem
        and isinstance(node.args[1], slice)
    ):
        start = node.args[1].start or 0
        whole = tail_of(node.args[0])
        if (
            whole is not None
            and isinstance(start, int)
            and start >= 0
            and node.args[1].step in (None, 1)
        ):
            return whole[0], whole[1] + start
    return None


def is_size(node: fx.Node) -> bool:
    """Whether ``node`` is a shape, a size or made of sizes only: nothing that needs a tensor's values."""
    if tail_of(node) is not None or origin(node) is not None:
        return True
    sized = node.op == "call_function" and node.target in (
        splat,
        operator.mul,
        operator.floordiv,
        operator.add,
    )
    inputs = node.all_input_nodes
    return sized and bool(inputs) and all(is_size(one) for one in inputs)


def spell_out(graph: fx.Graph) -> None:
    """Write ``unflatten(0, x.shape[:2])`` as ``unflatten(0, (x.shape[0], x.shape[1]))``."""
    for node in list(graph.nodes):
        if _name(node) != "unflatten" or len(node.args) != 3:
            continue
        pair = node.args[2]
        two = slice(None, 2), slice(0, 2)
        if tail_of(pair) is None or pair.target is not operator.getitem or pair.args[1] not in two:
            continue
        with graph.inserting_before(node):
            sizes = [
                graph.call_function(operator.getitem, (pair.args[0], index)) for index in (0, 1)
            ]
        node.update_arg(2, tuple(sizes))


@dataclass(frozen=True, slots=True)
class Refold:
    """A reshape that only joins or parts T and B.

    Attributes:
        to: layout of the result.
        t, b: sizes that the call names, for "time"; -1 where it leaves one open.
        plane: sizes of a plane that the call names, as far as they are not those of its input by construction.
        flattens: it makes each plane a vector, too.
    """

    to: Layout
    t: Any = None
    b: Any = None
    plane: tuple[Any, ...] | None = None  # a single shape node stands for all of its sizes
    flattens: bool = False


def refold(node: fx.Node) -> Refold | None:
    """Return what ``node`` does if it is a reshape of this kind; the layout it is given is still to be checked."""
    name = _name(node)
    args = list(node.args[1:])
    if node.kwargs and name != "flatten":
        return None
    if name == "flatten":
        start, end = _start_end(node)
        return Refold("planes") if (start, end) == (0, 1) else None
    if name == "unflatten" and len(args) == 2 and args[0] == 0:
        parted = args[1]
        if isinstance(parted, tuple | list) and len(parted) == 2:
            return Refold("time", parted[0], parted[1])
    if name in ("view", "reshape"):
        sizes = list(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else args
        return _reshape(node, sizes)
    return None


def _name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    named: dict[Any, str] = {
        torch.flatten: "flatten",
        torch.unflatten: "unflatten",
        torch.reshape: "reshape",
    }
    return named.get(node.target, "") if node.op == "call_function" else ""


def _start_end(node: fx.Node) -> tuple[Any, Any]:
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return start, end


def plane_flatten(node: fx.Node) -> int | None:
    """The first axis of a flattening of all axes from there on (1 or 2), else None."""
    if _name(node) != "flatten":
        return None
    start, end = _start_end(node)
    return start if start in (1, 2) and end == -1 else None


def _reshape(node: fx.Node, sizes: list[Any]) -> Refold | None:
    """``x.reshape(T*B, ...)`` or ``x.reshape(T, B, ...)``: told apart by how many axes of the input follow."""
    source = node.args[0]
    if not sizes or not isinstance(source, fx.Node):
        return None
    for count, to, skipped in ((1, "planes", 2), (2, "time", 1)):
        rest = sizes[count:]
        if len(sizes) < count or not _ends_like(source, rest, skipped):
            continue
        return Refold("planes") if to == "planes" else Refold("time", sizes[0], sizes[1])
    last = sizes[-1]
    if isinstance(last, fx.Node) and last.target is splat:
        shape = (last.args[0],)
        return {
            2: Refold("planes", plane=shape),
            3: Refold("time", sizes[0], sizes[1], plane=shape),
        }.get(len(sizes))
    if any(isinstance(size, fx.Node) and size.target is splat for size in sizes):
        return None
    if len(sizes) == 3 and sizes[2] == -1 and sizes[0] != -1 and sizes[1] != -1:
        return Refold("time", sizes[0], sizes[1], flattens=True)
    if isinstance(sizes[0], fx.Node) and sizes[0].target is operator.mul and len(sizes) > 2:
        return Refold("planes", plane=tuple(sizes[1:]))
    if len(sizes) > 3 and all(isinstance(size, fx.Node | int) for size in sizes):
        return Refold("time", sizes[0], sizes[1], plane=tuple(sizes[2:]))
    return None


def _ends_like(source: fx.Node, rest: list[Any], skipped: int) -> bool:
    """Whether ``rest`` are the sizes of ``source`` from axis ``skipped`` on, in whatever way they were written."""
    if len(rest) == 1 and isinstance(rest[0], fx.Node) and rest[0].target is splat:
        return tail_of(rest[0].args[0]) == (source, skipped)
    found = [origin(size) if isinstance(size, fx.Node) else None for size in rest]
    return len(rest) > 1 and found == [(source, skipped + index) for index in range(len(rest))]
