"""What a network costs to run: synaptic operations at measured firing rates, bytes of weights and states, per layer.

    accumulate (AC)            a spike arrives at a synapse: one addition. Counted: multiply-adds of the operator that
                               meet a value that is not 0, where all values are 0 or 1.
    multiply-accumulate (MAC)  the operator reads anything else: all of its multiply-adds count, zeros too.

So the analog stem counts as multiply-accumulates in full, and so does an operator behind an average pool, attention or
the reversible neuron. Bias, normalization, pools and the neurons' own arithmetic are listed as ``neuron_updates``, not
hidden: each is a handful of operations per neuron and step.
Whether hardware can skip zeros is the hardware's matter: CPUs and GPUs with dense kernels do all ``dense`` operations.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revedge.engine import SpikeAttention
from revedge.models.count import macs_of
from revedge.models.net import SpikingNet, spiking_units

# Picojoules of one float32 operation in 45 nm: Horowitz, ISSCC 2014, figure 1.1.9 (addition 0.9; multiplication 3.7).
AC_PJ, MAC_PJ = 0.9, 4.6
_OPERATORS = (nn.Conv1d, nn.Conv2d, nn.Linear, SpikeAttention)


@dataclass(slots=True)
class LayerCost:
    """One operator, over all time steps, per sample.

    Attributes:
        path: its place in the network.
        kind: its type.
        reads: "spikes" (0 and 1 only, in all that was measured) or "values".
        rate: share of inputs that are not 0.
        dense: multiply-adds without skipping anything.
        accumulates: of these, additions for a spike; 0 where it reads values.
        macs: ``dense`` where it reads values, else 0.
        weight_bytes: as stored.
    """

    path: str
    kind: str
    weight_bytes: int
    reads: str = "spikes"
    rate: float = 0.0
    dense: float = 0.0
    accumulates: float = 0.0
    macs: float = 0.0


@dataclass(slots=True)
class NeuronCost:
    """One neuron layer.

    Attributes:
        path: its place.
        count: neurons.
        rate: spikes per neuron and step, measured.
        state_bytes: one float32 each.
        updates: per sample, over all time steps.
    """

    path: str
    count: int
    state_bytes: int
    rate: float = 0.0
    updates: int = 0


@dataclass(frozen=True, slots=True)
class CostReport:
    """Layers in order of execution, neurons in the order of their states, and what was measured on."""

    layers: list[LayerCost]
    neurons: list[NeuronCost]
    samples: int
    timesteps: int

    def to_dict(self) -> dict[str, Any]:
        """Return totals and rows, units in the keys."""
        total = {
            name: sum(getattr(layer, name) for layer in self.layers)
            for name in ("dense", "accumulates", "macs")
        }
        return {
            "samples": self.samples,
            "timesteps": self.timesteps,
            "dense_operations": total["dense"],
            "accumulates": total["accumulates"],
            "multiply_accumulates": total["macs"],
            "neuron_updates": sum(neuron.updates for neuron in self.neurons),
            "spikes": sum(neuron.rate * neuron.updates for neuron in self.neurons),
            "estimate_45nm_uj": (AC_PJ * total["accumulates"] + MAC_PJ * total["macs"]) * 1e-6,
            "dense_45nm_uj": MAC_PJ * total["dense"] * 1e-6,
            "weight_bytes": sum(layer.weight_bytes for layer in self.layers),
            "state_bytes": sum(neuron.state_bytes for neuron in self.neurons),
            "layers": [_row(layer) for layer in self.layers],
            "neurons": [_row(neuron) for neuron in self.neurons],
        }


def measure_cost(
    net: SpikingNet, batches: Iterable[Tensor], *, bytes_per_weight: int = 4
) -> CostReport:
    """Step ``net`` over ``batches`` and count.

    Args:
        net: trained; not changed.
        batches: recordings ``[T, B, C, H, W]`` (or images ``[B, C, H, W]`` for a static net), as `SpikingNet.forward`
            takes them. The same image is read by the stem at every step, and counted at every step.

        bytes_per_weight: as stored, 4 or 1; biases and normalizations take 4 in any case.

    Time: one streamed inference of all batches, in plain PyTorch.
    """
    probe = copy.deepcopy(net).cpu().eval()
    meter = _Meter(probe, bytes_per_weight)
    samples = 0
    with torch.no_grad():
        for x in batches:
            frames = [x] * probe.timesteps if probe.static else list(x)
            states = probe.initial_states(x.shape[-4])
            samples += x.shape[-4]
            for frame in frames:
                _, states = probe.step(frame, states)
    return meter.report(samples)


class _Meter:
    """Hooks on operators and neurons of a copy; sums over samples and steps."""

    def __init__(self, net: SpikingNet, bytes_per_weight: int) -> None:
        self.timesteps = net.timesteps
        self.layers: dict[nn.Module, LayerCost] = {}
        self.seen: dict[nn.Module, tuple[float, float]] = {}  # inputs, of them not 0
        for name, module in net.named_modules():
            if isinstance(module, _OPERATORS):
                sizes = {n: p.numel() for n, p in module.named_parameters()}
                weights = sum(
                    (bytes_per_weight if n == "weight" else 4) * size for n, size in sizes.items()
                )
                self.layers[module] = LayerCost(name, type(module).__name__, weights)
                self.seen[module] = (0.0, 0.0)
                module.register_forward_hook(self._operator)
        self.neurons: list[NeuronCost] = []
        self.fired: list[float] = []
        for spec, (_, unit) in zip(net.state_spec(), spiking_units(net), strict=True):
            count = int(torch.Size(spec.shape).numel())
            self.neurons.append(NeuronCost(spec.name, count, 4 * count))
            self.fired.append(0.0)
            neuron: Any = unit.neuron
            # An attribute of the copy hides the method of its class.
            object.__setattr__(neuron, "step", self._neuron(neuron.step, len(self.fired) - 1))

    def _operator(self, module: nn.Module, args: Any, out: Tensor) -> None:
        x, cost = args[0], self.layers[module]
        dense = float(macs_of(module, x.shape, out.shape)) * x.shape[0]
        cost.dense += dense
        inputs, active = self.seen[module]
        nonzero = float(torch.count_nonzero(x))
        self.seen[module] = (inputs + x.numel(), active + nonzero)
        if isinstance(module, SpikeAttention) or not bool(((x == 0) | (x == 1)).all()):
            cost.reads = "values"
        cost.accumulates += _met(module, x)

    def _neuron(self, step: Any, index: int) -> Any:
        def watched(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            y, v_next = step(x, v)
            self.fired[index] += float(torch.count_nonzero(y))
            return y, v_next

        return watched

    def report(self, samples: int) -> CostReport:
        count = max(1, samples)
        layers = []
        for module, cost in self.layers.items():
            inputs, active = self.seen[module]
            if inputs == 0.0:
                continue  # never called: not part of a step
            cost.rate = active / inputs
            cost.dense /= count
            cost.accumulates = 0.0 if cost.reads == "values" else cost.accumulates / count
            cost.macs = cost.dense if cost.reads == "values" else 0.0
            layers.append(cost)
        for neuron, fired in zip(self.neurons, self.fired, strict=True):
            neuron.updates = neuron.count * self.timesteps
            neuron.rate = fired / (count * neuron.updates)
        return CostReport(layers, self.neurons, samples, self.timesteps)


def _met(module: nn.Module, x: Tensor) -> float:
    """Multiply-adds that meet an input that is not 0: exact at the borders too, where a spike meets fewer weights."""
    active = (x != 0).to(torch.float32)
    if isinstance(module, nn.Linear):
        return float(active.sum()) * module.out_features
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.padding_mode != "zeros":
        return 0.0
    ones = torch.ones_like(module.weight[: module.groups])
    call = nn.functional.conv2d if isinstance(module, nn.Conv2d) else nn.functional.conv1d
    met = call(active, ones, None, module.stride, module.padding, module.dilation, module.groups)
    return float(met.double().sum()) * (module.out_channels // module.groups)


def _row(value: LayerCost | NeuronCost) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
