"""The same forward pass in plain PyTorch: reference operators, autograd, nothing of the engine, nothing in C.

This is the definition that `revedge verify` holds every memory strategy against. It keeps everything, and is slow.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revedge.engine import (
    GRID_BITS,
    INPUT_GRID_BITS,
    Branch,
    Coupling,
    Feed,
    Forks,
    Residual,
    Run,
    Unit,
)
from revedge.kernels.reference.norm import channel_stats
from revedge.models.net import SpikingNet
from revedge.neurons import ReversibleNode


def plain_forward(net: SpikingNet, x: Tensor) -> Tensor:
    """Return what ``net(x)`` returns, differentiable by autograd alone.

    Batch statistics are those of the batch; running statistics are not touched. Dropout draws the masks that ``net``
    would draw from the same state of the generator.

    Args:
        net: in training mode.
        x: ``[T, B, C, H, W]``, or ``[B, C, H, W]`` if the net is static.
    """
    stream = _run(net.stem, x[None] if net.static else x)
    if net.static:
        stream = stream.expand(net.timesteps, *stream.shape[1:])
    for run in net.runs()[1:]:
        stream = _run(run, stream)
    return stream.mean(0)


def _run(run: Run, x: Tensor) -> Tensor:
    if isinstance(run, Coupling):
        half = x.shape[2] // 2
        halves = [x[:, :, :half], x[:, :, half:]]
        for index, branch in enumerate(run.half_blocks()):
            halves[index % 2] = halves[index % 2] + _branch(branch, halves[1 - index % 2])
        return torch.cat(halves, 2)
    if isinstance(run, Residual):
        for branch in run.branch_list():
            x = x + _branch(branch, x)
        return x
    if isinstance(run, Forks):
        for fork in run.fork_list():
            s = x if fork.head is None else _unit(fork.head, x)
            parts = [s] if fork.identity else []
            x = _sum(parts + [_branch(arm, s) for arm in fork.arm_list()])
        return x
    assert isinstance(run, Feed)
    return _sum([_branch(branch, x) for branch in run.branch_list()])


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _branch(branch: Branch, x: Tensor) -> Tensor:
    for unit in branch.unit_list():
        x = _unit(unit, x)
    if branch.norm is not None:
        x = _norm(branch.norm, x)
        x = _round_to_grid(x if branch.pool is None else _folded(branch.pool, x), GRID_BITS)
    return x


def _unit(unit: Unit, x: Tensor) -> Tensor:
    if unit.norm is not None:
        x = _norm(unit.norm, x)
    if unit.neuron is not None:
        if isinstance(unit.neuron, ReversibleNode) and unit.norm is not None:
            x = _round_to_grid(x, INPUT_GRID_BITS)
        x = _neuron(unit.neuron, x)
    seed = int(torch.randint(2**62, ())) if unit.training and unit.dropout else None
    x = x if unit.pool is None else _folded(unit.pool, x)
    if seed is not None:
        generator = torch.Generator(device=x.device).manual_seed(seed)
        kept = torch.rand(x.shape[1:], generator=generator, device=x.device) >= unit.dropout
        x = x * (kept.to(x.dtype) * (1.0 / (1.0 - unit.dropout)))
    return x if unit.op is None else _folded(unit.op, x)


def _norm(norm: nn.Module, y: Tensor) -> Tensor:
    assert isinstance(norm, _BatchNorm)
    mean, var = channel_stats(y.flatten(0, 1))
    inv_std = (var + norm.eps).sqrt().reciprocal()
    scale = norm.weight * inv_std
    shift = norm.bias - mean * scale
    shape = (1, 1, -1) + (1,) * (y.dim() - 3)
    return y * scale.view(shape) + shift.view(shape)


def _neuron(neuron: Any, x: Tensor) -> Tensor:
    v = torch.full_like(x[0], 0.0 if neuron.v_reset is None else neuron.v_reset)
    spikes = []
    for x_t in x:
        s, v = neuron.step(x_t, v)
        spikes.append(s)
    return torch.stack(spikes)


def _folded(module: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = module(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


def _round_to_grid(x: Tensor, bits: int) -> Tensor:
    rounded = torch.round(x * float(2**bits)) * float(2.0**-bits)
    # Both differences are exact; the gradient passes straight through.
    return x + (rounded - x).detach()
