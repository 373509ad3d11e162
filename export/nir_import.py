"""NIR graphs as PyTorch modules: weights and neuron parameters of a file, one time step, states in and out.

The equations are NIR's, integrated with one Euler step of ``dt`` per time step; a neuron fires above its threshold and
is set to its reset value. IF takes its input as it is per step, as snnTorch and sinabs read it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from revedge.errors import ExportError, UsageError
from revedge.export.nir_graph import DT

_LARGEST_BYTES = 1 << 31
_ROUNDED = 1e-6  # time constants are float32


class NirNeuron(nn.Module):
    """LIF or IF of NIR with a value per neuron: ``v += leak (v_leak - v + r x)``, or ``v += r x``."""

    r: Tensor
    v_threshold: Tensor
    v_reset: Tensor
    v_leak: Tensor
    leak: Tensor

    def __init__(self, node: Any, dt: float) -> None:
        super().__init__()
        leaky = hasattr(node, "tau")
        self.leaky = leaky
        names = ("r", "v_threshold", "v_reset") + (("tau", "v_leak") if leaky else ())
        for name in names:
            self.register_buffer(name, torch.from_numpy(np.array(getattr(node, name), np.float32)))
        if leaky:
            # In float64: 1 - dt/tau of a time constant of two steps is 0.5 and not a neighbor of it.
            leak = dt / np.array(node.tau, np.float64)
            self.register_buffer("leak", torch.from_numpy(leak.astype(np.float32)))

    def forward(
        self, x: Tensor, v: Tensor, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return spikes, the membrane before the reset, and the one behind it, reset by ``given`` spikes if any."""
        x = x * self.r
        h = v * (1.0 - self.leak) + (x + self.v_leak) * self.leak if self.leaky else v + x
        fired = h > self.v_threshold
        reset = fired if given is None else given > 0.5
        return fired.to(h.dtype), h, torch.where(reset, self.v_reset, h)


@dataclass(frozen=True, slots=True)
class NirStep:
    """What one step gave: output, and of every neuron new state, membrane before the reset, and spikes."""

    output: Tensor
    states: list[Tensor]
    membranes: list[Tensor]
    spikes: list[Tensor]


class NirNet(nn.Module):
    """A graph without cycles; `step` is one time step.

    Attributes:
        layers: node name -> module.
        neurons: names of the neurons, in the order of their states.
        kinds: node name -> its type in NIR.
        shapes: node name -> the shape that it names, if any; of its input.
    """

    def __init__(self, graph: Any, dt: float = DT) -> None:
        super().__init__()
        self.sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, target in graph.edges:
            if source not in self.sources or target not in self.sources:
                raise ExportError(
                    f"the NIR graph has an edge from {source!r} to {target!r}, which is not there"
                )
            self.sources[target].append(source)
        self.order = _in_order(self.sources)
        self.kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
        self.shapes = {name: _shape_of(node) for name, node in graph.nodes.items()}
        self.ends = {
            kind: [name for name, node in graph.nodes.items() if type(node).__name__ == kind]
            for kind in ("Input", "Output")
        }
        if len(self.ends["Input"]) != 1 or len(self.ends["Output"]) != 1:
            raise ExportError("the NIR graph has not one input and one output")
        self.layers = nn.ModuleDict()
        self._keys = {name: f"n{index}" for index, name in enumerate(self.order)}
        for name in self.order:
            self.layers[self._keys[name]] = _module(name, graph.nodes[name], dt)
        self.neurons = [name for name in self.order if isinstance(self.layer(name), NirNeuron)]
        self.requires_grad_(False)

    def layer(self, name: str) -> nn.Module:
        """Return the module of a node."""
        return self.layers[self._keys[name]]

    def initial_states(self, batch: int) -> list[Tensor]:
        """Membranes at their reset value, where a stream of revedge begins; NIR itself names no start."""
        states = []
        for name in self.neurons:
            rest = self.layer(name).get_buffer("v_reset")
            states.append(rest.expand(batch, *rest.shape).clone())
        return states

    def step(self, x: Tensor, states: list[Tensor], given: list[Tensor] | None = None) -> NirStep:
        """One time step of ``x`` ``[B, ...]``.

        Args:
            x: input.
            states: one tensor ``[B, ...]`` per entry of ``neurons``.
            given: spikes that neurons hand on and are reset by, instead of their own.
        """
        left = list(states)
        new: list[Tensor] = []
        membranes: list[Tensor] = []
        spikes: list[Tensor] = []
        values: dict[str, Tensor] = {}
        for name in self.order:
            inputs = [values[source] for source in self.sources[name]]
            value = x if not inputs else inputs[0]
            for other in inputs[1:]:
                value = value + other
            layer = self.layer(name)
            if isinstance(layer, NirNeuron):
                used = None if given is None else given[len(new)]
                value, h, v = layer(value, left.pop(0), used)
                new.append(v)
                membranes.append(h)
                spikes.append(value)
                value = value if used is None else used
            else:
                value = layer(value)
            values[name] = value
        return NirStep(values[self.ends["Output"][0]], new, membranes, spikes)


def read_nir(path: Path, dt: float = DT) -> NirNet:
    """Read a NIR file.

    Args:
        path: an HDF5 file of NIR.
        dt: seconds per time step.

    Raises:
        UsageError: no file of that name.
        ExportError: damaged, or with something that has no counterpart here; named.
    """
    import nir

    if not path.is_file():
        raise UsageError(f"{path} does not exist; write it with: revedge export RUN --format nir")
    if path.stat().st_size > _LARGEST_BYTES:
        raise ExportError(f"{path} is larger than {_LARGEST_BYTES} bytes")
    try:
        _require_complete(path)
        return NirNet(nir.read(str(path)), dt)
    except ExportError:
        raise
    except Exception as error:  # those of h5py, nir and torch have no common base
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ExportError(f"{path} is damaged, or not a NIR file: {line}") from None


def _require_complete(path: Path) -> None:
    """Raise unless the data of an HDF5 file lie in it, and are no more than can be read.

    Raises:
        ExportError: it links to another file, or claims more than 2 GiB.
    """
    import h5py  # type: ignore[import-untyped,unused-ignore]

    total_bytes, waiting, seen = 0, [], set()
    with h5py.File(path, "r") as file:
        waiting = [file]
        while waiting:
            group = waiting.pop()
            for name in group:
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise ExportError(
                        f"{path} links {name!r} to another place, which no NIR file needs; write it again"
                    )
                one = group[name]
                if isinstance(one, h5py.Dataset):
                    if one.external or one.is_virtual:
                        raise ExportError(
                            f"{path} keeps {name!r} in another file; write it again in one"
                        )
                    total_bytes += one.nbytes
                elif one.id not in seen:
                    seen.add(one.id)
                    waiting.append(one)
    if total_bytes > _LARGEST_BYTES:
        raise ExportError(f"{path} claims {total_bytes} bytes, more than {_LARGEST_BYTES}")


def _in_order(sources: dict[str, list[str]]) -> list[str]:
    order: list[str] = []
    waiting = dict(sources)
    while waiting:
        ready = [name for name, given in waiting.items() if all(s in order for s in given)]
        if not ready:
            raise ExportError(
                f"the NIR graph is recurrent, which is not supported: {', '.join(waiting)[:200]} wait for each other"
            )
        order += ready
        for name in ready:
            del waiting[name]
    return order


def _module(name: str, node: Any, dt: float) -> nn.Module:
    kind = type(node).__name__
    if kind in ("Input", "Output"):
        return nn.Identity()
    _require_sound(name, node, dt)
    if kind in ("LIF", "IF"):
        return NirNeuron(node, dt)
    if kind in ("Linear", "Affine"):
        weight = _tensor(node.weight)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=kind == "Affine")
        return _filled(layer, weight, node.bias if kind == "Affine" else None)
    if kind in ("Conv1d", "Conv2d"):
        return _convolution(name, node, kind)
    if kind == "Flatten":
        end = int(node.end_dim)
        return nn.Flatten(int(node.start_dim) + 1, end if end < 0 else end + 1)
    if kind in ("AvgPool2d", "SumPool2d"):
        size, stride, padding = map(_two, (node.kernel_size, node.stride, node.padding))
        divisor = 1 if kind == "SumPool2d" else None
        return nn.AvgPool2d(size, stride, padding, divisor_override=divisor)
    raise ExportError(f"{name}: the NIR node {kind} has no counterpart in revedge")


def _require_sound(name: str, node: Any, dt: float) -> None:
    """Raise for values with which neurons would fall silent without a word; thresholds may be infinite."""
    for key, value in vars(node).items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            allowed = ~np.isnan(value) if key == "v_threshold" else np.isfinite(value)
            if not np.all(allowed):
                raise ExportError(
                    f"{name}: {key} holds values that are not finite; write the graph again"
                )
    tau = np.asarray(getattr(node, "tau", dt), np.float64)
    if not np.all(tau >= dt * (1 - _ROUNDED)):
        raise ExportError(
            f"{name}: a time constant of {tau.min():g} s is shorter than the time step of {dt:g} s; pass a smaller dt"
        )


def _convolution(name: str, node: Any, kind: str) -> nn.Module:
    weight = _tensor(node.weight)
    if isinstance(node.padding, str):
        raise ExportError(f"{name}: padding {node.padding!r} is not supported; give numbers")
    make: Any = nn.Conv2d if kind == "Conv2d" else nn.Conv1d
    dims = weight.dim() - 2
    stride, padding, dilation = (
        tuple(int(v) for v in np.broadcast_to(np.asarray(value), (dims,)))
        for value in (node.stride, node.padding, node.dilation)
    )
    groups = int(node.groups)
    layer = make(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride,
        padding,
        dilation,
        groups,
    )
    return _filled(layer, weight, node.bias)


def _filled(layer: Any, weight: Tensor, bias: Any) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(_tensor(bias))
    found: nn.Module = layer
    return found


def _shape_of(node: Any) -> Any:
    shape = getattr(node, "input_shape", None)
    return (getattr(node, "input_type", None) or {}).get("input") if shape is None else shape


def _two(value: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(np.asarray(value), (2,))
    return int(first), int(second)


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value, np.float32))
