"""From chains to pieces: residual blocks, neighbors joined, and what may not be swallowed."""

from typing import Any

from torch import fx

from revedge.engine.adopt.chains import Chain, Finder
from revedge.engine.adopt.coupling import SUMS, couplings, whole_of
from revedge.engine.adopt.piece import Piece
from revedge.engine.adopt.sizes import is_size
from revedge.engine.adopt.units import branch_of
from revedge.engine.coupling import Coupling
from revedge.engine.feed import Feed
from revedge.engine.residual import Residual
from revedge.engine.run import Run


def pieces_of(finder: Finder) -> tuple[list[Piece], int]:
    """Return the pieces of a graph in order, and how many more blocks could be rebuilt if `grid` were allowed."""
    while True:
        chains = _worthwhile(finder.find())
        needed = _needed(chains)
        if needed <= finder.ends:
            break
        finder.ends |= needed
        finder.sizes.axes.clear()
    streams = [(chain, total) for chain in chains if (total := _residual_sum(chain)) is not None]
    found, taken = couplings(finder, chains)
    waiting = len(streams) + len(found)
    if not finder.grid:
        streams, found, taken = [], [], set()
    totals = {id(chain): total for chain, total in streams}
    pieces = [_piece(chain, totals.get(id(chain))) for chain in chains if id(chain) not in taken]
    order = {node: index for index, node in enumerate(finder.graph.nodes)}
    pieces = sorted([*pieces, *found], key=lambda piece: order[piece.last])
    return _join(pieces), 0 if finder.grid else waiting


def _worthwhile(chains: list[Chain]) -> list[Chain]:
    """Chains with a neuron, and those that end in a normalization right in front of such a chain: stems."""
    read = {whole_of(chain.source) for chain in chains if chain.spikes}
    return [chain for chain in chains if chain.spikes or (chain.last in read and _is_stem(chain))]


def _is_stem(chain: Chain) -> bool:
    working = [part.kind for part in chain.parts if part.kind != "skip"]
    return chain.layout is not None and working[-1:] == ["norm"]


def _needed(chains: list[Chain]) -> set[fx.Node]:
    """Nodes inside chains whose sizes somebody outside needs."""
    inside = {node for chain in chains for node in chain.nodes}
    named = {size for chain in chains for size in chain.named_sizes if isinstance(size, fx.Node)}
    return {
        node for chain in chains for node in chain.nodes[:-1] if _sizes_needed(node, inside, named)
    }


def _sizes_needed(node: fx.Node, inside: set[fx.Node], named: set[fx.Node]) -> bool:
    """Whether a size of ``node`` is used by what stays, or is looked at when a run starts."""

    def needed(size: fx.Node) -> bool:
        return size in named or any(
            needed(u) if is_size(u) else u not in inside for u in size.users
        )

    return any(needed(user) for user in node.users if is_size(user))


def readers(node: fx.Node) -> list[fx.Node]:
    """Nodes that read the values of ``node``."""
    return [user for user in node.users if not is_size(user)]


def _residual_sum(chain: Chain) -> fx.Node | None:
    """The node ``x + chain(x)`` if this is a block that can be undone: spikes first, a normalization last."""
    users = readers(chain.last)
    if (
        len(users) != 1
        or not is_sum(users[0])
        or chain.given != chain.layout
        or not ends_in_norm(chain)
    ):
        return None
    total = users[0]
    if set(total.args) != {chain.source, chain.last} or set(readers(chain.source)) != {
        chain.nodes[0],
        total,
    }:
        return None
    working = [part.kind for part in chain.parts if part.kind != "skip"]
    return total if working[0] in ("norm", "neuron") else None


def is_sum(node: fx.Node) -> bool:
    """Whether ``node`` adds two tensors and nothing else."""
    return node.target in SUMS and len(node.args) == 2 and not node.kwargs


def ends_in_norm(chain: Chain) -> bool:
    """Whether the last thing that the chain computes is a normalization, behind a neuron."""
    working = [part.kind for part in chain.parts if part.kind != "skip"]
    return len(working) > 1 and working[-1] == "norm" and "neuron" in working


def _piece(chain: Chain, total: fx.Node | None) -> Piece:
    run: Run
    chain.in_block = total is not None
    if total is not None:
        run = Residual([branch_of(chain.parts, ends_on_grid=True)])
    else:
        run = Feed([branch_of(chain.parts, ends_on_grid=False)])
    assert chain.given is not None
    assert chain.layout is not None
    nodes = set(chain.nodes) | ({total} if total is not None else set())
    return Piece(
        chain.source,
        total if total is not None else chain.last,
        nodes,
        [chain],
        [run],
        chain.given,
        chain.layout,
    )


def _join(pieces: list[Piece]) -> list[Piece]:
    """Pieces that follow each other become one, so that one autograd function carries them."""
    named = {size for piece in pieces for size in piece.named_sizes if isinstance(size, fx.Node)}
    joined: list[Piece] = []
    for piece in pieces:
        before = next((one for one in joined if one.last is piece.source), None)
        inside = {node for one in pieces for node in one.nodes}
        if before is None or _used_beside(before.last, piece, inside, named):
            joined.append(piece)
            continue
        joined.remove(before)
        joined.append(_one(before, piece))
    return joined


def _used_beside(node: fx.Node, piece: Piece, inside: set[fx.Node], named: set[fx.Node]) -> bool:
    return any(user not in piece.nodes for user in readers(node)) or _sizes_needed(
        node, inside, named
    )


def _one(a: Piece, b: Piece) -> Piece:
    runs = list(a.runs)
    for run in b.runs:
        runs = _then(runs, run)
    return Piece(a.source, b.last, a.nodes | b.nodes, [*a.paths, *b.paths], runs, a.given, b.gives)


def _then(runs: list[Run], run: Run) -> list[Run]:
    last: Any = runs[-1]
    if isinstance(run, Residual) and isinstance(last, Residual):
        return [
            *runs[:-1],
            Residual([*last.branch_list(), *run.branch_list()], on_grid=last.on_grid),
        ]
    if isinstance(run, Coupling) and isinstance(last, Coupling):
        a, b = last.half_blocks(), run.half_blocks()
        return [
            *runs[:-1],
            Coupling([*a[::2], *b[::2]], [*a[1::2], *b[1::2]], on_grid=last.on_grid),
        ]
    if isinstance(run, Residual | Coupling):
        run.on_grid = isinstance(last, Residual | Coupling)
    return [*runs, run]
