"""A traced forward with pieces in it, and how it is run."""

import operator
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from revedge.engine.adopt.blocks import pieces_of
from revedge.engine.adopt.chains import Finder
from revedge.engine.adopt.piece import Piece
from revedge.engine.adopt.sizes import is_size, spell_out
from revedge.engine.adopt.trace import flatten_splats, splat
from revedge.engine.adopt.written import is_written


class Program:
    """The forward of ``root`` with runs where they fit.

    Args:
        root: traced; parameters and buffers that its forward reads itself are looked up in it at every call.
        graph: of `trace`; it is rewritten.
        grid: see `revedge.engine.apply`.

    Attributes:
        pieces: what became runs.
        waiting: how many residual or coupling blocks ``grid`` would make reversible.
        why: why a module is in no run, by name.
        notes: what the user should know, by name of the module.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, *, grid: bool) -> None:
        self.root = root
        self.modules = dict(root.named_modules(remove_duplicate=False))
        spell_out(graph)
        finder = Finder(graph, self.modules, grid)
        self.pieces, self.waiting = pieces_of(finder)
        self.why, self.notes = finder.why, finder.notes
        for piece in self.pieces:
            piece.overwritten = is_written(piece.last, self.modules)
        _put(graph, self.pieces)
        self._nodes = list(graph.nodes)
        self._last_use = _last_uses(self._nodes)

    def __call__(self, inputs: dict[str, Any]) -> Any:
        """Run with ``inputs`` by name; a value is dropped after its last use."""
        values: dict[fx.Node, Any] = {}
        result: Any = None
        for node in self._nodes:
            if node.op == "output":
                result = _plain(map_arg(node.args[0], values.__getitem__))
                break
            values[node] = self._run(node, values, inputs)
            for done in self._last_use.get(node, ()):
                del values[done]
        return result

    def used_twice(self) -> str | None:
        """Name of a parameter that a run uses, and another unit, or something beside the runs, too; None if none."""
        held: dict[Tensor, int] = {}
        for run in (run for piece in self.pieces for run in piece.runs):
            for _, parameter in run.named_parameters(remove_duplicate=False):
                held[parameter] = held.get(parameter, 0) + 1
        beside = {tensor for node in self._nodes for tensor in self._read_by(node)}
        names: dict[Tensor, str] = {p: name for name, p in self.root.named_parameters()}
        found = (p for p, count in held.items() if count > 1 or p in beside)
        return next((names.get(p, "a parameter") for p in found), None)

    def _read_by(self, node: fx.Node) -> list[Tensor]:
        """Parameters that a node beside the runs reads."""
        if node.op == "call_module":
            return list(self.modules[str(node.target)].parameters())
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.root)
            return [value] if isinstance(value, Tensor) else []
        return []

    def _run(self, node: fx.Node, values: dict[fx.Node, Any], inputs: dict[str, Any]) -> Any:
        if node.op == "placeholder":
            name = str(node.target).lstrip("*")
            # The name of a fixed input has got a number.
            return inputs[name] if name in inputs else inputs[name.rpartition("_")[0]]
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        args = map_arg(node.args, values.__getitem__)
        kwargs = map_arg(node.kwargs, values.__getitem__)
        if any(used.target is splat for used in node.all_input_nodes):
            args = tuple(flatten_splats(args))
            kwargs = dict(zip(kwargs, flatten_splats(kwargs.values()), strict=True))
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _plain(value: Any) -> Any:
    """Undo what a graph does to containers: it makes them immutable."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return tuple(_plain(one) for one in value) if type(value) is tuple else value


def _put(graph: fx.Graph, pieces: list[Piece]) -> None:
    """Put calls of ``pieces`` in the place of their nodes."""
    calls: dict[fx.Node, fx.Node] = {}
    gone: set[fx.Node] = set()
    for piece in pieces:
        with graph.inserting_before(piece.last):
            args = (calls.get(piece.source, piece.source), piece.named_sizes)
            call = graph.create_node("call_function", piece, args, name="run")
        calls[piece.last] = call
        piece.last.replace_all_uses_with(call)
        gone |= piece.nodes
    for node in reversed(list(graph.nodes)):
        if node in gone or (not node.users and is_size(node)):
            graph.erase_node(node)


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        for used in node.all_input_nodes:
            last[used] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for used, user in last.items():
        found.setdefault(user, []).append(used)
    return found
