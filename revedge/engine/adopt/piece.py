"""A piece: what takes the place of some nodes of a forward: runs in turn, carried as one autograd function."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from revedge.engine.adopt.chains import Chain as Path
from revedge.engine.adopt.chains import SourceAxis
from revedge.engine.adopt.parts import Layout, Part
from revedge.engine.adopt.rest import check_rest, spend
from revedge.engine.chain import Chain
from revedge.engine.run import Run, carry
from revedge.errors import UsageError


@dataclass(slots=True, eq=False)
class Piece:
    """Runs for some nodes.

    Attributes:
        source, last: nodes that are read, and replaced.
        nodes: all that it stands for, ``last`` included.
        paths: the chains that it was made of, in turn.
        runs: what it does.
        given, gives: layouts of input and output.
        overwritten: the forward writes into what it gives out.
    """

    source: fx.Node
    last: fx.Node
    nodes: set[fx.Node]
    paths: list[Path]
    runs: list[Run]
    given: Layout
    gives: Layout
    overwritten: bool = False
    _checked: set[Any] = field(default_factory=set)

    @property
    def named_sizes(self) -> tuple[Any, ...]:
        """Sizes that the forward names, in the graph's terms; `__call__` gets them as values."""
        return tuple(size for path in self.paths for size in path.named_sizes)

    @property
    def neurons(self) -> list[nn.Module]:
        """The user's neurons, and his dropouts with a state, that the runs stand in for."""
        return [
            part.source for path in self.paths for part in path.parts if part.source is not None
        ]

    @property
    def names(self) -> list[str]:
        """Names of the user's modules in it."""
        return [name for path in self.paths for name in path.names]

    def __call__(self, x: Tensor, sizes: tuple[Any, ...]) -> Tensor:
        """Return what the nodes would have given out for ``x``.

        Raises:
            UsageError: a neuron is not at rest, or a tensor has other sizes than the forward says, or one axis only.
        """
        if x.dim() < 2 and self.given == "time":
            raise UsageError(
                f"neurons under apply are given [T, B, ...], and {_where(self.paths[0])} is given {tuple(x.shape)}; "
                "give it one more axis, or leave it out of apply"
            )
        check_rest(self.neurons)
        x = _part_time(x, sizes[0], sizes[1]) if self.given == "planes" else x
        self._check_sizes(x, sizes)
        one = x.dim() == 2 and self.gives == "time"  # [T, features] of one sample
        chain = Chain(self.runs)
        out = carry(chain, x.unsqueeze(1) if one else x, chain.parameters())
        spend(self.neurons)
        out = out.squeeze(1) if one else out
        out = out.clone() if self.overwritten and chain.keeps_output else out
        return out.flatten(0, 1) if self.gives == "planes" else out

    def _check_sizes(self, x: Tensor, sizes: tuple[Any, ...]) -> None:
        """Compare the sizes that the forward names with those that there are; once per shape."""
        key = (x.shape, sizes)
        if key in self._checked:
            return
        rest = iter(sizes)
        plane = x.new_empty((0, *x.shape[2:]))
        follow = any(claim.plane is not None for path in self.paths for claim in path.claims)
        for path in self.paths:
            if path.first is not None:
                _check_time(path, x, next(rest), next(rest))
            done, local = 0, plane
            for claim in path.claims:
                _check_time(path, x, next(rest), next(rest))
                if claim.plane is not None:
                    local, done = _through(path.parts[done : claim.parts], local), claim.parts
                    _check_plane(path, local, _named(claim.plane, plane, rest))
            if follow and not path.in_block:  # a block gives out the shape that it was given
                plane = _through(path.parts[done:], local)
        if len(self._checked) > 64:
            self._checked.clear()
        self._checked.add(key)


def _part_time(x: Tensor, t: int | None, b: int | None) -> Tensor:
    assert t is not None
    assert b is not None
    parted: Tensor = x.unflatten(0, (t, b))
    return parted


def _check_time(path: Path, x: Tensor, t: int | None, b: int | None) -> None:
    if t not in (None, -1, x.shape[0]) or b not in (None, -1, x.shape[1]):
        named = ", ".join(f"{name}={n}" for name, n in (("T", t), ("B", b)) if n not in (None, -1))
        raise UsageError(
            f"behind {_where(path)} the forward names {named}, but there are T={x.shape[0]}, B={x.shape[1]}; "
            "leave it out of apply"
        )


def _through(parts: list[Part], plane: Tensor) -> Tensor:
    """Send an empty batch through: no memory and no arithmetic, but the shape."""
    with torch.no_grad():
        for part in parts:
            if part.kind == "tail":
                assert part.module is not None
                plane = part.module(plane)
    return plane


def _named(claimed: tuple[Any, ...], source: Tensor, rest: Iterator[Any]) -> list[int]:
    """The sizes that a forward names, as values."""
    named: list[int] = []
    for size in claimed:
        if isinstance(size, SourceAxis):
            of_source = list(source.shape[1:])
            named += of_source if size.index is None else of_source[size.index : size.index + 1]
        else:
            value = next(rest)
            named += list(value) if isinstance(value, tuple) else [value]
    return named


def _check_plane(path: Path, plane: Tensor, named: list[int]) -> None:
    found = list(plane.shape[1:])
    if len(named) != len(found) or any(a not in (-1, b) for a, b in zip(named, found, strict=True)):
        raise UsageError(
            f"behind {_where(path)} the forward reshapes planes of {tuple(found)} to {tuple(named)}, "
            "which is more than joining or parting T and B; leave it out of apply"
        )


def _where(path: Path) -> str:
    return f"{path.names[0]}" if path.names else str(path.source)
