"""Coupling blocks of a user's forward: ``a, b = x.chunk(2)``; ``a = a + F(b)``; ``b = b + G(a)``; ``cat([a, b])``."""

import operator
from typing import Any

import torch
from torch import fx

from revedge.engine.adopt.chains import Chain, Finder
from revedge.engine.adopt.piece import Piece
from revedge.engine.adopt.sizes import is_size
from revedge.engine.adopt.units import branch_of
from revedge.engine.coupling import Coupling

_HALVINGS = (torch.chunk, "chunk", torch.tensor_split, "tensor_split")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


def couplings(finder: Finder, chains: list[Chain]) -> tuple[list[Piece], set[int]]:
    """Return one piece per sequence of coupling blocks, and the ids of the chains in them."""
    by_last = {chain.last: chain for chain in chains}
    pieces: list[Piece] = []
    taken: set[int] = set()
    for node in finder.graph.nodes:
        piece = _coupling(node, by_last)
        if piece is not None:
            pieces.append(piece)
            taken |= {id(path) for path in piece.paths}
    return pieces, taken


def _coupling(cat: fx.Node, by_last: dict[fx.Node, Chain]) -> Piece | None:
    """Walk back from the concatenation, half by half, to the chunk."""
    halves, axis = _operands(cat)
    if halves is None:
        return None
    blocks: list[Chain] = []
    nodes, now = {cat}, list(halves)
    while True:
        to = (len(blocks) + 1) % 2  # walking back, G comes first
        step = _update_of(to, now, by_last)
        if step is None:
            break
        chain, before = step
        nodes |= {*chain.nodes, now[to]}
        blocks.append(chain)
        now[to] = before
    whole = _chunked(now, axis)
    if whole is None or not blocks or len(blocks) % 2:
        return None
    chunk = next(iter(now[0].args))
    assert isinstance(chunk, fx.Node)
    nodes |= {*now, chunk}
    layout = blocks[0].layout
    channel = 2 if layout == "time" else 1
    fits = all(chain.given == chain.layout == layout for chain in blocks) and axis in (channel, -3)
    fits = fits and all(claim.plane is None for chain in blocks for claim in chain.claims)
    if layout is None or not fits or not all(_alone(node, nodes) for node in nodes - {cat}):
        return None
    forward = blocks[::-1]
    for chain in forward:
        chain.in_block = True
    branches = [branch_of(chain.parts, ends_on_grid=True) for chain in forward]
    return Piece(
        whole, cat, nodes, forward, [Coupling(branches[::2], branches[1::2])], layout, layout
    )


def _operands(cat: fx.Node) -> tuple[list[fx.Node] | None, Any]:
    if cat.op != "call_function" or cat.target not in (torch.cat, torch.concat) or not cat.args:
        return None, None
    args: list[Any] = list(cat.args)
    axis = args[1] if len(args) > 1 else cat.kwargs.get("dim", 0)
    tensors = args[0]
    if not isinstance(tensors, tuple | list) or len(tensors) != 2:
        return None, None
    halves = [one for one in tensors if isinstance(one, fx.Node)]
    return (halves if len(halves) == 2 else None), axis


def _update_of(
    to: int, now: list[fx.Node], by_last: dict[fx.Node, Chain]
) -> tuple[Chain, fx.Node] | None:
    """The branch of the other half that was added to half ``to`` last, and what that half was before."""
    node = now[to]
    if node.target not in SUMS or len(node.args) != 2 or node.kwargs:
        return None
    for branch, before in (node.args, node.args[::-1]):
        chain = by_last.get(branch) if isinstance(branch, fx.Node) else None
        if (
            chain is not None
            and chain.source is now[1 - to]
            and _fit(chain)
            and isinstance(before, fx.Node)
        ):
            return chain, before
    return None


def _fit(chain: Chain) -> bool:
    working = [part.kind for part in chain.parts if part.kind != "skip"]
    return len(working) > 1 and working[-1] == "norm" and "neuron" in working


def _chunked(now: list[fx.Node], axis: Any) -> fx.Node | None:
    """The tensor whose two halves along ``axis`` these are."""
    chunks = [node.args[0] if node.target is operator.getitem else None for node in now]
    if chunks[0] is None or chunks[0] is not chunks[1] or [node.args[1] for node in now] != [0, 1]:
        return None
    chunk = chunks[0]
    if not isinstance(chunk, fx.Node) or chunk.target not in _HALVINGS:
        return None
    args: list[Any] = list(chunk.args)
    along = args[2] if len(args) > 2 else chunk.kwargs.get("dim", 0)
    fits = args[1:2] == [2] and along == axis and isinstance(args[0], fx.Node)
    return args[0] if fits else None


def whole_of(node: fx.Node) -> fx.Node:
    """The tensor that ``node`` is a half of, else ``node``."""
    if (
        node.target is operator.getitem
        and isinstance(node.args[0], fx.Node)
        and node.args[0].target in _HALVINGS
    ):
        whole = next(iter(node.args[0].args))
        return whole if isinstance(whole, fx.Node) else node
    return node


def _alone(node: fx.Node, nodes: set[fx.Node]) -> bool:
    return all(user in nodes or is_size(user) for user in node.users)
