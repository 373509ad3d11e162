"""How far two float32 computations of one time step may lie apart, neuron by neuron.

Both are given the same input, the same states and the same spikes (see parity.py), so nothing but rounding separates
them. Every value ``x`` is carried with a bound ``e`` on that difference:

    operator   e <- |W| e + (4 sqrt(n) + 4) u |W| |x|     n products per sum, u = 2**-24
    norm       e <- |scale| e + 4 u (|y scale| + |mean scale| + |bias|)
    grid       e <- e + 2**-bits                          two values on either side of a rounding boundary; a branch's
                                                          is given, so behind it e = 0
    neuron     e <- gain e + 4 u (|v| + |x| + |h|)        its spikes are given, so behind it e = 0

A sum of n products is off by sum_k delta_k P_k, P_k the partial sums, delta_k independent rounding errors below u with
variance at most u^2/3. Partial sums that grow evenly to S = |W| |x| have a mean square of S^2/3, so the deviation is at
most sqrt(n) u S / 3, whatever the order; six of them are 2 sqrt(n) u S, and there are two computations. The other 4 u S
are the rounding of folded weights and of the bias. Source of the model: Higham, Mary, SIAM J. Sci. Comput. 41 (2019).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from revedge.engine import (
    Branch,
    Coupling,
    Feed,
    Forks,
    GlobalMean,
    Residual,
    SpikeAttention,
    Twice,
    Unit,
    Voting,
)
from revedge.engine.unit import GRID_BITS, INPUT_GRID_BITS, to_grid
from revedge.errors import ExportError
from revedge.export.cells import WATCH, ReversibleCell
from revedge.export.inference import cell_of
from revedge.models import SpikingNet
from revedge.neurons import BaseNode, ReversibleNode

_U = 2.0**-24
Pair = tuple[Tensor, Tensor]  # a value, and the bound on its difference


def step_bounds(
    net: SpikingNet,
    x: Tensor,
    states: list[Tensor],
    spikes: list[Tensor],
    streams: list[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Bounds for one step: of logits, membranes before the reset, new states, and what branches add to streams.

    Args:
        net: in eval mode, on the CPU.
        x: ``[B, C, H, W]``.
        states: before the step, in the order of ``net.state_spec()``.
        spikes: of this step, in the same order.
        streams: what the branches of all runs but the last added in this step, in order of execution; None where each
            side goes on with its own.

    Time: three times the step. Raises:
        ExportError: a layer for which no rule is known.
    """
    walk = _Walk(states, spikes, streams)
    with torch.no_grad():
        stream: Pair = (x, torch.zeros_like(x))
        for run in net.runs():
            walk.last = run is net.runs()[-1]
            stream = walk.run(run, stream)
    return stream[1], walk.membranes, walk.states, walk.streams


class _Walk:
    def __init__(
        self, states: list[Tensor], spikes: list[Tensor], streams: list[Tensor] | None
    ) -> None:
        self.given_states = states
        self.given_spikes = spikes
        self.given_streams = streams
        self.last = False
        self.streams: list[Tensor] = []
        self.membranes: list[Tensor] = []
        self.states: list[Tensor] = []

    def run(self, run: nn.Module, stream: Pair) -> Pair:
        if isinstance(run, Feed):
            return _sum([self.branch(b, stream) for b in run.branches if isinstance(b, Branch)])
        if isinstance(run, Forks):
            for fork in run.fork_list():
                spikes = stream if fork.head is None else self.unit(fork.head, stream)
                parts = [spikes] if fork.identity else []
                parts += [self.branch(arm, spikes) for arm in fork.arm_list()]
                exact = all(arm.on_grid for arm in fork.arm_list())
                stream = _sum(parts) if exact else _rounded_sum(parts)
            return stream
        assert isinstance(run, Residual | Coupling)
        if not run.on_grid:
            stream = _grid(stream, GRID_BITS)
        if isinstance(run, Residual):
            for branch in run.branches:
                assert isinstance(branch, Branch)
                stream = _add(stream, self.branch(branch, stream))
            return stream
        (x1, x2), (e1, e2) = stream[0].chunk(2, 1), stream[1].chunk(2, 1)
        written, read = (x1, e1), (x2, e2)
        for pair in zip(run.f, run.g, strict=True):
            for branch in pair:
                assert isinstance(branch, Branch)
                written, read = read, _add(written, self.branch(branch, read))
        return torch.cat([written[0], read[0]], 1), torch.cat([written[1], read[1]], 1)

    def branch(self, branch: Branch, pair: Pair) -> Pair:
        for unit in branch.units:
            assert isinstance(unit, Unit)
            pair = self.unit(unit, pair)
        if branch.norm is None:
            return pair
        value, e = _grid(_layer(branch.pool, _norm(branch.norm, pair)), GRID_BITS)
        if self.given_streams is None or self.last:
            return value, e
        given = self.given_streams[len(self.streams)]
        self.streams.append(e)
        return given, torch.zeros_like(given)

    def unit(self, unit: Unit, pair: Pair) -> Pair:
        if unit.norm is not None:
            pair = _norm(unit.norm, pair)
            if isinstance(unit.neuron, ReversibleNode):
                pair = _grid(pair, INPUT_GRID_BITS)
        if isinstance(unit.neuron, BaseNode):
            pair = self._neuron(unit.neuron, pair)
        elif isinstance(unit.neuron, ReversibleNode):
            pair = self._reversible(unit.neuron, pair)
        return _layer(unit.op, _layer(unit.pool, pair))

    def _neuron(self, neuron: BaseNode, pair: Pair) -> Pair:
        x, e = pair
        p, index = neuron.params(), len(self.membranes)
        v, s = self.given_states[index], self.given_spikes[index]
        h = v * p.decay + x * p.gain + p.bias
        e_h = abs(p.gain) * e + 4 * _U * (v.abs() + x.abs() + h.abs() + abs(p.bias))
        if p.late is not None:  # by given states, alike on both sides; one subtraction more
            h = torch.where(v >= p.v_threshold, h - p.late, h)
            e_h = e_h + 2 * _U * (h.abs() + p.late)
        self.membranes.append(e_h)
        self.states.append(e_h + _U * (h.abs() + p.v_threshold))
        return s, torch.zeros_like(s)

    def _reversible(self, neuron: ReversibleNode, pair: Pair) -> Pair:
        x, e = pair
        p, index = neuron.params(), len(self.membranes)
        v, s = self.given_states[index], self.given_spikes[index]
        cell = cell_of(neuron, tuple(x.shape[1:]), WATCH)
        assert isinstance(cell, ReversibleCell)
        n, dim, width = p.groups, cell.dim, cell.width
        passed = torch.roll(x, -width, dim) * p.beta
        y = s + passed
        e_y = torch.roll(e, -width, dim) * abs(p.beta) + 2 * _U * (y.abs() + passed.abs())
        first = (n - 2) * width
        drive = torch.cat([x.narrow(dim, 0, (n - 1) * width), y.narrow(dim, first, width)], dim)
        e_drive = torch.cat([e.narrow(dim, 0, (n - 1) * width), e_y.narrow(dim, first, width)], dim)
        m = cell(x, [v])[1][1]
        size = v.abs() + drive.abs() + m.abs()
        e_m = e_drive / p.tau + 4 * _U * size
        e_v = (1 - y).abs() * e_m + (m - p.v_reset).abs() * e_y + e_m * e_y
        e_v = e_v + 6 * _U * ((1 - y).abs() * m.abs() + (y * p.v_reset).abs() + v.abs())
        self.membranes.append(e_m)
        self.states.append(e_v)
        return y, e_y


def _add(a: Pair, b: Pair) -> Pair:
    return a[0] + b[0], a[1] + b[1]  # sums on the grid are exact


def _sum(parts: list[Pair]) -> Pair:
    total = parts[0]
    for part in parts[1:]:
        total = _add(total, part)
    return total


def _rounded_sum(parts: list[Pair]) -> Pair:
    """Of values off the grid: each sum is rounded, and both sides sum in one order."""
    value, e = _sum(parts)
    size = sum((part[0].abs() for part in parts[1:]), parts[0][0].abs())
    return value, e + 2 * (len(parts) - 1) * _U * size


def _grid(pair: Pair, bits: int) -> Pair:
    return to_grid(pair[0], bits), pair[1] + 2.0**-bits


def _norm(norm: nn.Module, pair: Pair) -> Pair:
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    y, e = pair
    shape = [1, -1] + [1] * (y.dim() - 2)
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = norm.running_mean * scale
    bias = torch.zeros_like(scale) if norm.bias is None else norm.bias
    z = y * scale.view(shape) + (bias - shift).view(shape)
    size = (y * scale.view(shape)).abs() + (shift.abs() + bias.abs()).view(shape)
    return z, e * scale.abs().view(shape) + 4 * _U * size


def _layer(layer: nn.Module | None, pair: Pair) -> Pair:
    if layer is None or isinstance(layer, nn.Identity):
        return pair
    x, e = pair
    if isinstance(layer, nn.Sequential):
        for part in layer:
            pair = _layer(part, pair)
        return pair
    if isinstance(layer, SpikeAttention) and not bool(e.any()):
        return layer(x), e[
            :, : x.shape[1] // 3
        ]  # sums of products of given spikes: integers, exact
    if isinstance(layer, Voting):
        return layer(x), layer(e) + _sum_error(layer.group) * layer(x.abs())
    if isinstance(layer, nn.Flatten | nn.Dropout | Twice):
        return layer(x), layer(e)
    if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d | nn.AdaptiveMaxPool2d):
        return layer(x), layer(e)  # a maximum moves no further than the value that moves most
    if isinstance(layer, nn.AvgPool1d | nn.AvgPool2d | nn.AdaptiveAvgPool2d | GlobalMean):
        return layer(x), layer(e) + _sum_error(x[0].numel() // max(1, x.shape[1])) * layer(x.abs())
    if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
        terms = layer.weight[0].numel()
        size = _weighted(layer, x.abs())
        bias = 0.0 if layer.bias is None else float(layer.bias.abs().max())
        return layer(x), _weighted(layer, e) + _sum_error(terms) * (size + bias)
    raise ExportError(
        f"no rounding bound is known for a layer of type {type(layer).__name__}, so its export cannot be checked; use "
        "convolutions, linear layers and pools of torch.nn"
    )


def _sum_error(terms: int) -> float:
    return (4.0 * math.sqrt(terms) + 4.0) * _U


def _weighted(layer: nn.Linear | nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """``|W| x`` without bias."""
    weight = layer.weight.abs()
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    if layer.padding_mode != "zeros":
        raise ExportError(
            f"no rounding bound is known for padding_mode={layer.padding_mode!r}; use zeros"
        )
    call = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv1d
    return call(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
