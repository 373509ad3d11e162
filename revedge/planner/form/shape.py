"""The geometry of a network as plain values: what the formulas are made of. Free of torch.

A child that has torch describes a network once (`describe.py`); T, B, strategies, slabs and optimizers are not part
of it, so that one description serves every configuration of a model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from revedge.planner.setting import Setting

Plane = tuple[int, ...]  # shape of one sample at one time step


class NotCoveredError(Exception):
    """Something that the formulas do not know; the configuration is traced."""


def volume(plane: Plane) -> int:
    """Number of values."""
    return math.prod(plane)


@dataclass(frozen=True, slots=True)
class Pool:
    """What stands between a neuron and its operator: "max", "average", "mean" (of a plane), "flatten", "twice"."""

    kind: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def is_window(self) -> bool:
        """Whether norm and neuron may take it along."""
        return self.kind in ("max", "average")

    def of(self, plane: Plane) -> Plane:
        """Shape of its result."""
        if self.kind == "mean":
            return plane[:1]
        if self.kind == "flatten":
            return (volume(plane),)
        if self.kind == "twice":
            return (2 * plane[0], *plane[1:])
        sides = zip(plane[1:], self.kernel, self.stride, self.padding, strict=True)
        return (plane[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in sides))


@dataclass(frozen=True, slots=True)
class Op:
    """The operator of a unit: "conv", "linear", "attention" or "voting"."""

    kind: str
    c_in: int = 0
    c_out: int = 0
    bias: bool = False
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1  # heads of attention, neurons that vote for a class

    @property
    def is_matrix(self) -> bool:
        """Whether it has weights, and so an output of its own, of which slabs can be computed one by one."""
        return self.kind in ("conv", "linear")

    @property
    def weight(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return (self.c_out, self.c_in, *(self.kernel if self.kind == "conv" else ()))

    def of(self, plane: Plane) -> Plane:
        """Shape of its result."""
        if self.kind == "conv":
            sides = zip(plane[1:], self.kernel, self.stride, self.padding, strict=True)
            return (self.c_out, *((n + 2 * p - k) // s + 1 for n, k, s, p in sides))
        if self.kind == "linear":
            return (self.c_out,)
        if self.kind == "attention":
            return (plane[0] // 3, *plane[1:])
        return (plane[0] // self.groups,)


@dataclass(frozen=True, slots=True)
class Unit:
    """norm -> neuron -> pools -> dropout -> operator.

    ``neuron`` is "spikes", "leak" (it learns its own), "reversible" (its output is real-valued) or "".
    """

    norm: bool
    neuron: str
    pools: tuple[Pool, ...]
    dropout: bool
    op: Op | None

    @property
    def spikes(self) -> bool:
        """Whether what the neuron gives out is 0 or 1."""
        return self.neuron in ("spikes", "leak")

    def of(self, plane: Plane) -> Plane:
        """Shape of its result."""
        for pool in self.pools:
            plane = pool.of(plane)
        return plane if self.op is None else self.op.of(plane)

    def multiplications(self, plane: Plane) -> int:
        """Multiply-adds of the operator for one plane."""
        if self.op is None:
            return 0
        for pool in self.pools:
            plane = pool.of(plane)
        if self.op.kind == "attention":
            tokens, width = volume(plane[1:]), plane[0] // (3 * self.op.groups)
            return 2 * volume(plane) // 3 * min(tokens, width)
        return volume(self.op.weight) * volume(self.op.of(plane)[1:])


@dataclass(frozen=True, slots=True)
class Branch:
    """Units in turn, a norm and pools at the end."""

    units: tuple[Unit, ...]
    norm: bool
    pools: tuple[Pool, ...]

    def of(self, plane: Plane) -> Plane:
        """Shape of its result."""
        for unit in self.units:
            plane = unit.of(plane)
        for pool in self.pools:
            plane = pool.of(plane)
        return plane

    def multiplications(self, plane: Plane) -> int:
        """Multiply-adds for one plane."""
        total = 0
        for unit in self.units:
            total += unit.multiplications(plane)
            plane = unit.of(plane)
        return total


@dataclass(frozen=True, slots=True)
class Fork:
    """A head of norm and neuron, the arms that read its spikes, and whether the spikes themselves are added."""

    head: Unit | None
    arms: tuple[Branch, ...]
    identity: bool


@dataclass(frozen=True, slots=True)
class Run:
    """ "feed", "residual", "coupling" (halves in turn: F, G) or "forks".

    ``branches`` come ``count`` times: a deep stack is its block and a number.
    """

    kind: str
    branches: tuple[Branch, ...] = ()
    count: int = 1
    forks: tuple[Fork, ...] = ()

    def work(self, plane: Plane) -> tuple[int, Plane]:
        """Multiply-adds for one plane, and the shape of the result."""
        if self.kind == "forks":
            total = 0
            for fork in self.forks:
                total += sum(arm.multiplications(plane) for arm in fork.arms)
                plane = fork.arms[0].of(plane)
            return total, plane
        part = (plane[0] // 2, *plane[1:]) if self.kind == "coupling" else plane
        total = self.count * sum(branch.multiplications(part) for branch in self.branches)
        return total, self.branches[0].of(plane) if self.kind == "feed" else plane


@dataclass(frozen=True, slots=True)
class Net:
    """Stem, body and head; sizes of the tensors that are there from the first step on, and how many of each."""

    runs: tuple[Run, ...]
    parameters: Mapping[int, int]
    buffers: Mapping[int, int]

    def multiplications(self, setting: Setting) -> list[int]:
        """Multiply-adds of each run's forward pass over a micro-batch."""
        found: list[int] = []
        plane: Plane = setting.in_shape
        for index, run in enumerate(self.runs):
            steps = 1 if setting.static and index == 0 else setting.timesteps
            work, plane = run.work(plane)
            found.append(work * steps * setting.micro_batch_size)
        return found


def net_of(values: Mapping[str, Any]) -> Net:
    """Return the net that `describe.describe` wrote down."""
    return Net(
        tuple(_run(each) for each in values["runs"]),
        {int(size): count for size, count in values["parameters"].items()},
        {int(size): count for size, count in values["buffers"].items()},
    )


def _run(values: Mapping[str, Any]) -> Run:
    branches, forks = map(_branch, values["branches"]), map(_fork, values["forks"])
    return Run(values["kind"], tuple(branches), values["count"], tuple(forks))


def _fork(values: Mapping[str, Any]) -> Fork:
    head = None if values["head"] is None else _unit(values["head"])
    return Fork(head, tuple(map(_branch, values["arms"])), values["identity"])


def _branch(values: Mapping[str, Any]) -> Branch:
    units, pools = map(_unit, values["units"]), map(_pool, values["pools"])
    return Branch(tuple(units), values["norm"], tuple(pools))


def _unit(values: Mapping[str, Any]) -> Unit:
    op = None if values["op"] is None else Op(**_tuples(values["op"]))
    pools = tuple(map(_pool, values["pools"]))
    return Unit(values["norm"], values["neuron"], pools, values["dropout"], op)


def _pool(values: Mapping[str, Any]) -> Pool:
    return Pool(**_tuples(values))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
