"""Where an ONNX step fires and rounds, found in the nodes of the file itself and matched to the network's neurons."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from revedge.errors import ExportError
from revedge.export.blocks import BranchStep, Grid
from revedge.export.cells import WATCH, ReversibleCell
from revedge.export.inference import cell_of, inference_form
from revedge.export.manifest import Manifest
from revedge.export.onnx_kept import read_kept
from revedge.export.onnx_step import OFFSET
from revedge.models import SpikingNet, spiking_units

if TYPE_CHECKING:
    import onnx

_FLOAT = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class Firing:
    """Where one neuron fires: ordinary ones at once (``cut`` 0), the reversible one in two parts along ``dim``.

    Ordinary ones, too, in several where the graph takes some of their channels for those of another neuron.
    """

    cut: int = 0
    dim: int = 1

    @property
    def parts(self) -> int:
        """In how many parts it fires."""
        return 2 if self.cut else 1


@dataclass(frozen=True, slots=True)
class Point:
    """Names in the graph: the membrane, "has fired" as bool where it is one, and as 0.0 or 1.0.

    Where it is none, ``slope`` and ``offset`` are those of the line that stands for the threshold. What is named is a
    ``multiple`` of the membrane, and ``wider``, if there is one, the node that puts columns of zeros beside it.
    """

    membrane: str
    fired: str
    spikes: str
    slope: float = 1.0
    offset: float = 0.0
    multiple: float = 1.0
    wider: "onnx.NodeProto | None" = None
    states: tuple[str, ...] = ()

    @property
    def columns(self) -> slice:
        """Where the neuron's own columns are in its spikes."""
        if self.wider is None:
            return slice(None)
        _, left, _, right = next(one.ints for one in self.wider.attribute if one.name == "pads")
        return slice(left, -right or None)

    @property
    def threshold(self) -> float:
        """The float32 above the line's 0."""
        return float(np.nextafter(np.float32(-self.offset / abs(self.slope)), np.float32(np.inf)))


def firing_of(net: SpikingNet) -> list[Firing]:
    """Where the neurons of a network fire, in order of execution."""
    found = []
    for spec, (_, unit) in zip(net.state_spec(), spiking_units(net), strict=True):
        assert unit.neuron is not None
        cell = cell_of(unit.neuron, spec.shape, WATCH)
        found.append(Firing(cell.rest, cell.dim) if isinstance(cell, ReversibleCell) else Firing())
    return found


def points_of(model: "onnx.ModelProto") -> list[Point]:
    """Where the graph fires, in graph order, which is the order of execution in PyTorch.

    That is at HardSigmoid, or at GreaterOrEqual with a Cast behind it; see `revedge.export.onnx_neurons`.
    """
    nodes = list(model.graph.node)
    made = {node.output[0]: node for node in nodes}
    kept = {
        node.input[0]: read_kept(node.output[0])
        for node in nodes
        if node.op_type == "ThresholdedRelu"
    }
    points = []
    for node in nodes:
        if node.op_type == "HardSigmoid":
            line = {one.name: one.f for one in node.attribute}
            wider = made[node.input[0]] if made[node.input[0]].op_type == "Conv" else None
            h = wider.input[0] if wider else node.input[0]
            state = kept.get(h)
            states, multiple = (state.states, state.multiple) if state else ((), 1.0)
            slope, offset = line["alpha"] * multiple, line["beta"]
            points.append(Point(h, "", node.output[0], slope, offset, multiple, wider, states))
        if node.op_type != "GreaterOrEqual":
            continue
        fired = node.output[0]
        casts = [
            one.output[0]
            for one in nodes
            if one.op_type == "Cast" and one.input[0] == fired and _casts_to(one) == _FLOAT
        ]
        if len(casts) != 1:
            raise ExportError(f"the comparison {fired!r} has {len(casts)} casts behind it, not 1")
        points.append(Point(node.input[0], fired, casts[0]))
    return points


def places_of(points: list[Point], firing: list[Firing], manifest: Manifest) -> list[list[int]]:
    """Of every neuron, which of ``points`` it is, in order of its channels.

    Raises:
        ExportError: the graph does not fire where the network does.
    """
    unnamed = [index for index, point in enumerate(points) if not point.states]
    places = []
    for state, one in zip(manifest.states, firing, strict=True):
        named = [index for index, point in enumerate(points) if state.next in point.states]
        if not named:
            named, unnamed = unnamed[: one.parts], unnamed[one.parts :]
        places.append(named)
    expected = sum(one.parts for one in firing)
    if unnamed or not all(places) or sum(map(len, places)) < expected:
        raise ExportError(
            f"the {manifest.graph} graph fires in {len(points)} places, the network in {expected}"
        )
    return places


def _casts_to(node: "onnx.NodeProto") -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)


def streams_of(model: "onnx.ModelProto", net: SpikingNet) -> dict[str, tuple[float, float]]:
    """What branches add to streams, in order of execution: where the graph rounds as a branch's last step.

    By the value is what it is a multiple of, the integer that was rounded to or that times the step of the grid, and
    what is added to it, see `StepGraph.rounded`.

    Raises:
        ExportError: the graph does not round where the network does.
    """
    from onnx import numpy_helper

    form = inference_form(net)
    ends = {
        part
        for run in list(form.runs)[:-1]
        for branch in run.modules()
        if isinstance(branch, BranchStep)
        for part in branch.close.modules()
    }
    grids = [module for module in form.modules() if isinstance(module, Grid)]
    behind: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            behind.setdefault(name, []).append(node)
    scalars = {
        one.name: float(numpy_helper.to_array(one))
        for one in model.graph.initializer
        if not one.dims
    }
    rounded = _roundings(model, scalars)
    if len(rounded) != len(grids):
        raise ExportError(f"the graph rounds in {len(rounded)} places, the network in {len(grids)}")
    found = {}
    for name, grid in zip(rounded, grids, strict=True):
        readers = behind.get(name, [])
        scaled = (
            len(readers) == 1
            and readers[0].op_type == "Mul"
            and scalars.get(readers[0].input[1]) == grid.down
        )
        if grid in ends:
            kept = readers[0].output[0] if scaled else name
            found[kept] = (1.0 if scaled else grid.up, rounded[name])
    return found


def _roundings(model: "onnx.ModelProto", scalars: dict[str, float]) -> dict[str, float]:
    """Values that were rounded to integers, in order, and what is added to them."""
    found: dict[str, float] = {}
    raised: set[str] = set()
    for node in model.graph.node:
        offset = -scalars.get(node.input[1], 0.0) if node.op_type == "Sub" else 0.0
        if node.op_type == "Round":
            found[node.output[0]] = 0.0
        elif node.op_type == "Split" and node.input[0] in raised:
            raised.update(node.output)
        elif abs(offset) == OFFSET and node.input[0] not in raised:
            found[node.output[0]] = offset
            raised.add(node.output[0])
    return found
