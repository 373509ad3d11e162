"""NIR, the neuromorphic intermediate representation: a trained network as a graph of its primitives, and back.

Needs the package ``nir`` (the extra ``revedge[nir]``). What NIR cannot say is refused with the layer's name: soft
reset, attention, max pooling, the reversible neuron. What it says otherwise is rewritten: sums are several edges into
one node, halves of a stream are 1x1 convolutions with 0 and 1, averages with padding are convolutions with constant
weights (what an average pool does with its padding differs between readers), a normalization on a stream is a 1x1
convolution, and groups of a convolution are zeros in its weights (nir 1.0.8 takes groups for an error of types).
NIR has no rounding: streams of the graph are not on the 2**-14 grid of the network, so single spikes may differ.

Neurons are in the "r = 1 form": `DT` is the step, tau = (time constant in steps) * DT, r = 1. A neuron whose input is
not divided by its time constant has threshold and reset divided by it instead, because some readers ignore r. NIR fires
above the threshold and revedge at it, so thresholds are one float32 lower.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from revedge.errors import ExportError
from revedge.export.blocks import (
    Affine,
    BranchStep,
    CouplingStep,
    Doubled,
    FeedStep,
    Grid,
    ResidualStep,
    SpaceMean,
    UnitStep,
    Votes,
)
from revedge.export.cells import Cell, NoCell
from revedge.export.fork_steps import ForksStep, ForkStep
from revedge.export.inference import inference_form
from revedge.models import SpikingNet

DT = 1e-4  # seconds; what snnTorch and norse assume
_Sources = list[str]  # nodes whose outputs are added up


def nir_graph(net: SpikingNet) -> Any:
    """Return the ``nir.NIRGraph`` of one time step of ``net``; nodes are named after its modules.

    Raises:
        ExportError: a layer that NIR cannot say; named.
    """
    import nir

    writer = _Writer(net)
    with torch.no_grad():
        last = writer.form()
    writer.nodes["output"] = nir.Output(output_type={"output": np.array([net.num_classes])})
    writer.connect(last, "output")
    return nir.NIRGraph(nodes=writer.nodes, edges=writer.edges)


def write_nir(net: SpikingNet, path: Path) -> None:
    """Write the graph of ``net`` to an HDF5 file, completely or not at all.

    Raises:
        ExportError: a layer that NIR cannot say; named.
    """
    import nir

    temporary = path.with_name(f".{path.name}.part")
    try:
        nir.write(str(temporary), nir_graph(net))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Writer:
    """Walks the inference form; ``x`` is an empty batch for sizes, and so is what every value is described by."""

    def __init__(self, net: SpikingNet) -> None:
        import nir

        self.net = net
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.x = torch.empty((0, *net.in_shape))
        self.names = [spec.name for spec in net.state_spec()]
        self.place = "input"
        self.nodes["input"] = nir.Input(input_type={"input": np.array(net.in_shape)})

    def form(self) -> _Sources:
        sources = ["input"]
        for index, run in enumerate(inference_form(self.net).runs):
            self.place = f"runs_{index}"
            sources = self.run(run, sources)
        return sources

    def run(self, run: nn.Module, sources: _Sources) -> _Sources:
        if isinstance(run, FeedStep):
            return self.together([run.first, *run.others], sources, [])
        if isinstance(run, ResidualStep):
            for branch in run.branches:
                sources = self.together([branch], sources, sources)
            return sources
        if isinstance(run, CouplingStep):
            return self.coupling(run, sources)
        assert isinstance(run, ForksStep)
        for fork in run.forks:
            assert isinstance(fork, ForkStep)
            spikes = self.unit(fork.head, sources)
            start = spikes if fork.identity else []
            sources = self.together([fork.first, *fork.others], spikes, start)
        return sources

    def together(self, branches: list[Any], sources: _Sources, start: _Sources) -> _Sources:
        """The sum of ``start`` and of what the branches make of ``sources``."""
        x, total = self.x, list(start)
        for branch in branches:
            self.x = x
            total += self.branch(branch, sources)
        return total

    def coupling(self, run: CouplingStep, sources: _Sources) -> _Sources:
        x, width = self.x, run.width
        halves = [
            self.mix(f"half_{k}", np.eye(width, 2 * width, k * width, dtype=np.float32), sources)
            for k in (0, 1)
        ]
        written, read = halves
        half = self.x
        for branch in run.branches:
            self.x = half
            written, read = read, self.together([branch], read, written)
        self.x = half
        first = self.mix("join_0", np.eye(2 * width, width, dtype=np.float32), written)
        self.x = half
        second = self.mix("join_1", np.eye(2 * width, width, -width, dtype=np.float32), read)
        self.x = x
        return first + second

    def mix(self, name: str, weight: npt.NDArray[np.float32], sources: _Sources) -> _Sources:
        """A 1x1 convolution that picks or places channels."""
        if name == "half_1":
            self.x = self.x.new_empty((0, 2 * self.x.shape[1], *self.x.shape[2:]))
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
        layer.weight.copy_(torch.from_numpy(weight)[:, :, None, None])
        return self.layer(layer, f"{self.place}_{name}", sources)

    def branch(self, branch: BranchStep, sources: _Sources) -> _Sources:
        for unit in branch.units:
            assert isinstance(unit, UnitStep)
            sources = self.unit(unit, sources)
        return self.modules(branch.close, sources)

    def unit(self, unit: UnitStep, sources: _Sources) -> _Sources:
        sources = self.modules(unit.head, sources)
        if not isinstance(unit.cell, NoCell):
            sources = self.neuron(unit.cell, sources)
        return self.modules(unit.tail, sources)

    def modules(self, module: nn.Module, sources: _Sources) -> _Sources:
        for part in module.modules():
            if list(part.children()) or isinstance(part, nn.Identity | nn.Dropout | Grid):
                continue
            sources = self.layer(part, f"{self.place}_{type(part).__name__.lower()}", sources)
        return sources

    def layer(self, module: nn.Module, name: str, sources: _Sources) -> _Sources:
        import nir

        shape = tuple(self.x.shape[1:])
        node: Any
        if isinstance(module, nn.AvgPool2d | SpaceMean | nn.AdaptiveAvgPool2d):
            return self.average(module, name, sources)
        if isinstance(module, Votes):
            group = module.group
            weight = np.kron(np.eye(shape[0] // group), np.full((1, group), 1.0 / group))
            node = nir.Linear(weight=weight.astype(np.float32))
        elif isinstance(module, Affine):
            scale = torch.diag(module.scale)[:, :, None, None].numpy()
            node = _conv(scale, module.shift.numpy(), shape)
        elif isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
            bias = torch.zeros(module.out_channels) if module.bias is None else module.bias
            node = _conv(_without_groups(module), bias.detach().numpy(), shape, module)
        elif isinstance(module, nn.Linear):
            weight = module.weight.numpy()
            if module.bias is None:
                node = nir.Linear(weight=weight)
            else:
                node = nir.Affine(weight=weight, bias=module.bias.numpy())
        elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            node = nir.Flatten({"input": np.array(shape)}, start_dim=0, end_dim=-1)
        else:
            what = "stream twice" if isinstance(module, Doubled) else type(module).__name__
            raise ExportError(
                f"{self.place}: NIR has no node for {what}; use --format onnx, or a network without it"
            )
        self.x = module(self.x)
        return self.add(name, node, sources)

    def average(self, module: Any, name: str, sources: _Sources) -> _Sources:
        """An average pool; with padding a convolution. A mean over everything is flattened too."""
        import nir

        channels, height, width = self.x.shape[1:]
        if isinstance(module, nn.AvgPool2d):
            size = _pair(module.kernel_size)
            stride = _pair(module.kernel_size if module.stride is None else module.stride)
            padding = _pair(module.padding)
            padded = padding != (0, 0)
            same = not padded or module.count_include_pad
            if not same or module.ceil_mode or module.divisor_override is not None:
                raise ExportError(
                    f"{self.place}: NIR cannot say an average over windows that differ in size; use --format onnx"
                )
            if padded:
                layer = nn.Conv2d(
                    channels, channels, size, stride, padding, groups=channels, bias=False
                )
                layer.weight.fill_(1.0 / (size[0] * size[1]))
                return self.layer(layer, name, sources)
            self.x = module(self.x)
        else:
            size = stride = (height, width)
            self.x = self.x.new_empty((0, channels, 1, 1))
        node = nir.AvgPool2d(np.array(size), np.array(stride), np.array((0, 0)))
        sources = self.add(name, node, sources)
        if isinstance(module, SpaceMean):
            sources = self.layer(nn.Flatten(), f"{name}_flatten", sources)
        return sources

    def neuron(self, cell: nn.Module, sources: _Sources) -> _Sources:
        import nir

        path = self.names.pop(0)
        if not isinstance(cell, Cell):
            raise ExportError(f"{path}: NIR cannot say the reversible neuron; use --format onnx")
        if not cell.hard:
            raise ExportError(
                f"{path}: NIR cannot say a soft reset (v_reset=None), only a reset to a value; use --format onnx, or "
                "train with v_reset=0"
            )
        shape = tuple(self.x.shape[1:])

        def full(value: float) -> npt.NDArray[np.float32]:
            return np.full(shape, value, np.float32)

        tau = 1.0 / (1.0 - cell.decay) if cell.leaky else 1.0
        unit = tau if cell.leaky and not cell.scaled else 1.0  # that membranes are divided by
        below = np.nextafter(np.float32(cell.v_threshold / unit), np.float32(-np.inf))
        common: dict[str, Any] = {
            "v_threshold": full(float(below)),
            "v_reset": full(cell.v_reset / unit),
        }
        if cell.leaky:
            rest = cell.bias / (1.0 - cell.decay)
            node = nir.LIF(tau=full(tau * DT), r=full(1.0), v_leak=full(rest / unit), **common)
        else:
            node = nir.IF(r=full(1.0), **common)
        return self.add(path.replace(".", "_"), node, sources)

    def add(self, name: str, node: Any, sources: _Sources) -> _Sources:
        unique, count = name, 1
        while unique in self.nodes:
            count += 1
            unique = f"{name}_{count}"
        self.nodes[unique] = node
        self.connect(sources, unique)
        return [unique]

    def connect(self, sources: _Sources, name: str) -> None:
        if len(set(sources)) != len(sources):
            raise ExportError(f"{name}: NIR cannot say that one value is added twice")
        self.edges += [(source, name) for source in sources]


def _conv(
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    shape: tuple[int, ...],
    module: nn.Conv2d | None = None,
) -> Any:
    import nir

    return nir.Conv2d(
        input_shape=(shape[1], shape[2]),
        weight=weight,
        stride=(1, 1) if module is None else _pair(module.stride),
        padding=(0, 0)
        if module is None or isinstance(module.padding, str)
        else _pair(module.padding),
        dilation=(1, 1) if module is None else _pair(module.dilation),
        groups=1,
        bias=bias,
    )


def _without_groups(module: nn.Conv2d) -> npt.NDArray[np.float32]:
    """Weights with zeros between the groups."""
    groups = module.groups
    parts = module.weight.detach().chunk(groups)
    width = module.in_channels // groups
    full = torch.zeros(module.out_channels, module.in_channels, *module.kernel_size)
    for index, part in enumerate(parts):
        rows = slice(index * len(part), (index + 1) * len(part))
        full[rows, index * width : (index + 1) * width] = part
    return full.numpy()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
