"""Writes the geometry of a network down as JSON, see `shape.py`. Runs in the tracing child, which has torch."""

import dataclasses
from collections import Counter
from typing import Any

from torch import nn

from revedge.engine import (
    Branch,
    Coupling,
    Feed,
    Fork,
    Forks,
    GlobalMean,
    Residual,
    Run,
    SpikeAttention,
    Twice,
    Unit,
    Voting,
)
from revedge.engine.pooled import pool_window
from revedge.models.folded import branches_of
from revedge.models.net import SpikingNet
from revedge.neurons import IFNode, LIFNode, ParametricLIFNode, ReversibleNode
from revedge.planner.form import shape
from revedge.planner.form.shape import NotCoveredError
from revedge.planner.stack import one_block, stacks

_NEURONS: dict[type, str] = {IFNode: "spikes", LIFNode: "spikes", ParametricLIFNode: "leak"}


def describe(net: SpikingNet, left_out: int = 0) -> dict[str, Any]:
    """Return what `shape.net_of` reads.

    Args:
        net: to be described.
        left_out: blocks that every stack of ``net`` has less than what is described (see `revedge.planner.stack`).

    Raises:
        NotCoveredError: a module that no formula knows.
    """
    runs = [_run(run, left_out) for run in net.runs()]
    parameters = Counter(p.numel() * p.element_size() for p in net.parameters())
    buffers = Counter(b.numel() * b.element_size() for b in net.buffers())
    for run in stacks(net) if left_out else []:
        for branch in one_block(run):
            for p in branch.parameters():
                parameters[p.numel() * p.element_size()] += left_out
            for b in branch.buffers():
                buffers[b.numel() * b.element_size()] += left_out
    return {"runs": runs, "parameters": dict(parameters), "buffers": dict(buffers)}


def _run(run: Run, left_out: int) -> dict[str, Any]:
    if isinstance(run, Forks):
        forks = [_fork(fork) for fork in run.fork_list()]
        return {"kind": "forks", "branches": [], "count": 1, "forks": forks}
    if isinstance(run, Feed):
        branches = [_branch(branch) for branch in run.branch_list()]
        return {"kind": "feed", "branches": branches, "count": 1, "forks": []}
    if not isinstance(run, Coupling | Residual) or not run.on_grid:
        raise NotCoveredError(type(run).__name__)
    every = [_branch(branch) for branch in branches_of(run)]
    block = [_branch(branch) for branch in one_block(run)]
    count = len(every) // len(block)
    if every != block * count:
        raise NotCoveredError("blocks that differ")
    kind = "coupling" if isinstance(run, Coupling) else "residual"
    return {"kind": kind, "branches": block, "count": count + left_out, "forks": []}


def _fork(fork: Fork) -> dict[str, Any]:
    if any(arm.pool is not None for arm in fork.arm_list()):
        raise NotCoveredError("a pool at the end of an arm")
    return {
        "head": None if fork.head is None else _unit(fork.head),
        "arms": [_branch(arm) for arm in fork.arm_list()],
        "identity": fork.identity,
    }


def _branch(branch: Branch) -> dict[str, Any]:
    _check_norm(branch.norm)
    return {
        "units": [_unit(unit) for unit in branch.unit_list()],
        "norm": branch.norm is not None,
        "pools": _pools(branch.pool),
    }


def _unit(unit: Unit) -> dict[str, Any]:
    _check_norm(unit.norm)
    neuron = "" if unit.neuron is None else _NEURONS.get(type(unit.neuron))
    if isinstance(unit.neuron, ReversibleNode):
        plain = (unit.neuron.backward, unit.neuron.groups, unit.neuron.dim) == ("direct", 2, 2)
        neuron = "reversible" if plain else None
    if neuron is None:
        raise NotCoveredError(type(unit.neuron).__name__)
    if unit.norm is not None and not neuron:
        raise NotCoveredError("a norm without a neuron")
    return {
        "norm": unit.norm is not None,
        "neuron": neuron,
        "pools": _pools(unit.pool),
        "dropout": bool(unit.dropout),
        "op": None if unit.op is None else dataclasses.asdict(_op(unit.op)),
    }


def _check_norm(norm: nn.Module | None) -> None:
    if norm is not None and (type(norm) is not nn.BatchNorm2d or norm.running_mean is None):
        raise NotCoveredError(type(norm).__name__)


def _pools(pool: nn.Module | None) -> list[dict[str, Any]]:
    parts = list(pool) if type(pool) is nn.Sequential else [] if pool is None else [pool]
    return [dataclasses.asdict(_pool(part)) for part in parts]


def _pool(pool: nn.Module) -> shape.Pool:
    kinds = {GlobalMean: "mean", nn.Flatten: "flatten", Twice: "twice"}
    if type(pool) in kinds:
        return shape.Pool(kinds[type(pool)])
    window = pool_window(pool)
    if window is None:
        raise NotCoveredError(type(pool).__name__)
    return shape.Pool(
        "average" if window.average else "max", window.kernel, window.stride, window.padding
    )


def _op(op: nn.Module) -> shape.Op:
    if type(op) is nn.Conv2d and op.groups == 1 and not isinstance(op.padding, str):
        kernel, stride, padding = (
            (int(each[0]), int(each[1])) for each in (op.kernel_size, op.stride, op.padding)
        )
        if op.padding_mode == "zeros" and tuple(op.dilation) == (1, 1):
            bias = op.bias is not None
            return shape.Op("conv", op.in_channels, op.out_channels, bias, kernel, stride, padding)
    if type(op) is nn.Linear:
        return shape.Op("linear", op.in_features, op.out_features, op.bias is not None)
    if type(op) is SpikeAttention:
        return shape.Op("attention", groups=op.heads)
    if type(op) is Voting:
        return shape.Op("voting", groups=op.group)
    raise NotCoveredError(type(op).__name__)
