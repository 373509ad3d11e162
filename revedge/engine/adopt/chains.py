"""Chains: modules and functions in turn, each reading only what the one before it gave out, and how they are found."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from revedge.engine.adopt import functions
from revedge.engine.adopt.parts import Layout, Part, UnfitError, parts_of
from revedge.engine.adopt.sizes import Axes, Refold, Sizes, is_size, origin, refold, tail_of


@dataclass(frozen=True, slots=True)
class SourceAxis:
    """A size that is one of the planes that the chain is given; ``index`` None: all of them."""

    index: int | None


@dataclass(slots=True)
class Claim:
    """Sizes that the user's forward names: after the first ``parts`` parts a tensor has T, B or a plane of them."""

    parts: int
    t: Any = None
    b: Any = None
    plane: tuple[Any, ...] | None = None


@dataclass(slots=True, eq=False)
class Chain:
    """A path through the graph.

    Attributes:
        source: what the first node reads.
        nodes: in turn.
        parts: of all nodes in turn.
        given: layout of what ``source`` holds; None while nothing has said.
        claims: sizes to be checked when it runs.
        first: T and B as the forward names them, where the chain begins on planes.
        layout: of what it gives out.
        names: of its modules.
        in_block: it is a branch of a residual or coupling block.
    """

    source: fx.Node
    given: Layout | None = None
    nodes: list[fx.Node] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    first: tuple[Any, Any] | None = None
    layout: Layout | None = None
    names: list[str] = field(default_factory=list)
    in_block: bool = False

    @property
    def last(self) -> fx.Node:
        """The node that gives out the chain's output."""
        return self.nodes[-1]

    @property
    def spikes(self) -> bool:
        """Whether it holds a neuron."""
        return any(part.kind == "neuron" for part in self.parts)

    @property
    def named_sizes(self) -> list[Any]:
        """What the forward says of sizes and a run has to look at: `first`, then the claims."""
        claimed = [
            size for claim in self.claims for size in (claim.t, claim.b, *(claim.plane or ()))
        ]
        return [*(self.first or ()), *(one for one in claimed if not isinstance(one, SourceAxis))]


@dataclass(slots=True)
class Finder:
    """Finds the chains of a graph.

    Attributes:
        graph: traced.
        modules: by name, as the graph calls them.
        grid: see `revedge.engine.apply`.
        ends: nodes that no chain may go through: others need what they give out.
        sizes: filled on the way.
        why: why a module is in no chain, by its name.
        notes: what the user should know, by module name.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    grid: bool
    ends: set[fx.Node] = field(default_factory=set)
    sizes: Sizes = field(default_factory=Sizes)
    why: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def find(self) -> list[Chain]:
        """Return the chains, longest possible, in the order of the graph."""
        chains: list[Chain] = []
        open_at: dict[fx.Node, Chain] = {}
        for node in self.graph.nodes:
            source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
            if source is None or node.op == "output" or is_size(node):
                self._carry_axes(node)
                continue
            before = open_at.get(source)
            free = before is not None and source not in self.ends and _read_once(source, node)
            if before is not None and free and self._extend(before, node):
                del open_at[source]
                open_at[node] = before
                continue
            chain = Chain(source, layout=self._layout_of(source))
            chain.given = chain.layout
            if self._extend(chain, node):
                chains.append(chain)
                open_at[node] = chain
            else:
                self._carry_axes(node)
        return chains

    def _layout_of(self, node: fx.Node) -> Layout | None:
        known = self.sizes.axes.get(node)
        return None if known is None else known.layout

    def _carry_axes(self, node: fx.Node) -> None:
        """A sum has the axes of what it adds."""
        known = [self.sizes.axes[one] for one in node.all_input_nodes if one in self.sizes.axes]
        if known and node.name.split("_")[0] in ("add", "iadd", "sub", "mul") and not is_size(node):
            self.sizes.axes[node] = known[0]

    def _extend(self, chain: Chain, node: fx.Node) -> bool:
        """Put ``node`` at the end of ``chain`` if it fits there."""
        change = refold(node)
        parts = self._parts(node, chain.layout) if change is None else []
        if parts is None or (
            change is None and any(isinstance(one, fx.Node) for one in _others(node))
        ):
            return False
        wanted: Any = ("planes" if change.to == "time" else "time") if change else "any"
        for part in parts:
            wanted = part.takes if part.takes != "any" else wanted
        if wanted != "any" and chain.layout not in (None, wanted):
            return False
        if chain.layout is None and wanted != "any":
            chain.given = chain.layout = wanted
        if change is not None and not self._refold(chain, change):
            return False
        chain.parts += parts
        chain.nodes.append(node)
        if node.op == "call_module":
            chain.names.append(str(node.target))
        self._name_axes(chain, node)
        return True

    def _parts(self, node: fx.Node, layout: Layout | None) -> list[Part] | None:
        if node.op != "call_module":
            part = functions.part_of(node, layout)
            return None if part is None else [part]
        name = str(node.target)
        try:
            if len(node.args) != 1 or node.kwargs:
                raise UnfitError("it is called with more than one tensor")
            parts = parts_of(self.modules[name], grid=self.grid)
            calls = sum(one.op == "call_module" and one.target == name for one in self.graph.nodes)
            if calls > 1 and any(part.kind == "neuron" for part in parts):
                raise UnfitError(f"its state goes through {calls} calls in one forward")
        except UnfitError as reason:
            self.why[name] = str(reason)
            return None
        self.notes[name] = tuple(note for part in parts for note in part.notes)
        return parts

    def _refold(self, chain: Chain, change: Refold) -> bool:
        """Join or part T and B; False where the graph does not say that it is the same T and B."""
        claim = Claim(len(chain.parts), plane=_from_source(chain, change.plane))
        if change.to == "time":
            if change.t == -1 and change.b == -1:
                return False
            known = self.sizes.axes.get(chain.last if chain.nodes else chain.source)
            if chain.given == "planes" and chain.first is None:
                chain.first = (change.t, change.b)
            else:
                claim.t = None if known and self.sizes.of(change.t) == (known.t,) else change.t
                claim.b = None if known and self.sizes.of(change.b) == (known.b,) else change.b
                claim.t = None if claim.t == -1 else claim.t
                claim.b = None if claim.b == -1 else claim.b
            if change.flattens:
                chain.parts.append(Part("tail", "planes", nn.Flatten()))
        if claim.plane is not None or claim.t is not None or claim.b is not None:
            chain.claims.append(claim)
        chain.layout = change.to
        return True

    def _name_axes(self, chain: Chain, node: fx.Node) -> None:
        """Say how what ``node`` gives out begins, where that is known."""
        if chain.layout is None:
            return
        before = self.sizes.axes.get(chain.nodes[-2] if len(chain.nodes) > 1 else chain.source)
        if before is None and chain.given == "time":
            before = Axes("time", f"{chain.source.name}#0", f"{chain.source.name}#1")
            for one in (chain.source, *chain.nodes[:-1]):
                self.sizes.axes.setdefault(one, before)
        if before is None and chain.first is not None:
            t, b = (self.sizes.of(size) for size in chain.first)
            name_t = t[0] if isinstance(t, tuple) and len(t) == 1 else f"{chain.source.name}#t"
            name_b = b[0] if isinstance(b, tuple) and len(b) == 1 else f"{chain.source.name}#b"
            before = Axes("planes", name_t, name_b)
            for one in (chain.source, *chain.nodes[:-1]):
                self.sizes.axes.setdefault(one, before)
        if before is not None:
            self.sizes.axes[node] = Axes(chain.layout, before.t, before.b)


def _from_source(chain: Chain, plane: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Say of the sizes in ``plane`` which are those of the chain's own input: they need not be looked up elsewhere."""
    if plane is None:
        return None
    lead = 2 if chain.given == "time" else 1

    def known(size: Any) -> Any:
        at = origin(size) if isinstance(size, fx.Node) else None
        if at is not None and at[0] is chain.source and at[1] >= lead:
            return SourceAxis(at[1] - lead)
        return SourceAxis(None) if tail_of(size) == (chain.source, lead) else size

    return tuple(known(size) for size in plane)


def _others(node: fx.Node) -> Iterator[Any]:
    yield from node.args[1:]
    yield from node.kwargs.values()


def _read_once(source: fx.Node, reader: fx.Node) -> bool:
    """Whether nobody but ``reader`` reads the values of ``source``; sizes may be read."""
    return all(user is reader or is_size(user) for user in source.users)
