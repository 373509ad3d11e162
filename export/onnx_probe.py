"""The twins of an ONNX file that show, or take, spikes; cut from the file itself, so weights and nodes are its own.

Of a sequence graph they are twins of the step that it repeats (onnx_contained.py).
"""

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from revedge.errors import ExportError
from revedge.export.blocks import BranchStep, Grid
from revedge.export.cells import WATCH, ReversibleCell
from revedge.export.inference import cell_of, inference_form
from revedge.export.manifest import Manifest
from revedge.export.onnx_contained import contained_step
from revedge.export.onnx_kept import read_kept
from revedge.export.onnx_step import OFFSET
from revedge.export.probes import Array, FileProbe, Seen
from revedge.export.runner import open_session
from revedge.models import SpikingNet, spiking_units

if TYPE_CHECKING:
    import onnx


_FLOAT = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class _Firing:
    """Where one neuron fires: ordinary ones at once (``cut`` 0), the reversible one in two parts along ``dim``.

    Ordinary ones, too, in several where the graph takes some of their channels for those of another neuron.
    """

    cut: int = 0
    dim: int = 1

    @property
    def parts(self) -> int:
        return 2 if self.cut else 1


@dataclass(frozen=True, slots=True)
class _Point:
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


class OnnxProbe(FileProbe):
    """Twins of ``model``, an export of ``net``.

    Raises:
        ExportError: the graph does not fire where the network does.
    """

    def __init__(self, model: "onnx.ModelProto", manifest: Manifest, net: SpikingNet) -> None:
        self._manifest = manifest
        self._firing = _firing_of(net)
        step = copy.deepcopy(contained_step(model, manifest))
        self._plain = open_session(step.SerializeToString())
        points = _points_of(step)
        streams = _streams_of(step, net) if manifest.numerics == "float" else {}
        self._places = _places_of(points, self._firing, manifest)
        self._points = points
        self._shown = [name for point in points for name in (point.membrane, point.spikes)]
        _show(step, self._shown)
        self._watch = open_session(step.SerializeToString())
        self._streams = streams
        _show(step, list(streams))
        _force(step, points, list(streams))
        self._force = open_session(step.SerializeToString())

    def shipped(self, x: Array, states: list[Array]) -> tuple[Array, list[Array]]:
        """See `FileProbe`."""
        logits, *new = self._plain.run(self._names(), self._feed(x, states))
        return logits, new

    def watched(self, x: Array, states: list[Array]) -> Seen:
        """See `FileProbe`."""
        return self._seen(self._watch.run([*self._names(), *self._shown], self._feed(x, states)))

    def forced(self, x: Array, given: Seen, states: list[Array]) -> Seen:
        """See `FileProbe`."""
        forced: dict[str, Array] = {}
        for neuron, (firing, places) in enumerate(zip(self._firing, self._places, strict=True)):
            names = [_forced_name(place) for place in places]
            widths = [forced[name].shape[firing.dim] for name in names if name in forced]
            cuts = [firing.cut] if firing.cut else np.cumsum(widths)[: len(names) - 1]
            parts = np.split(given.spikes[neuron], cuts, firing.dim)
            for name, part in zip(names, parts, strict=True):
                if not np.array_equal(forced.setdefault(name, np.ascontiguousarray(part)), part):
                    raise ExportError(
                        f"the {self._manifest.graph} graph takes neuron {neuron} for one that fires otherwise"
                    )
        kept = [(np.float32(k), np.float32(o)) for k, o in self._streams.values()]
        added = {
            _given_name(name): s * k + offset
            for name, s, (k, offset) in zip(self._streams, given.streams, kept, strict=True)
        }
        feed = {**self._feed(x, states), **forced, **added}
        names = [*self._names(), *self._shown, *self._streams]
        found = self._force.run(names, feed)
        cut = len(names) - len(self._streams)
        streams = [(s - offset) / k for s, (k, offset) in zip(found[cut:], kept, strict=True)]
        return dataclasses.replace(self._seen(found[:cut]), streams=streams)

    def _names(self) -> list[str]:
        return ["logits", *(state.next for state in self._manifest.states)]

    def _feed(self, x: Array, states: list[Array]) -> dict[str, Array]:
        named = zip(self._manifest.states, states, strict=True)
        return {"x": x, **{state.name: value for state, value in named}}

    def _seen(self, found: list[Array]) -> Seen:
        count = 1 + len(self._manifest.states)
        values = found[count:]
        shown = [
            (h / np.float32(point.multiple), s[..., point.columns])
            for point, h, s in zip(self._points, values[::2], values[1::2], strict=True)
        ]
        membranes, spikes = [], []
        for firing, places in zip(self._firing, self._places, strict=True):
            membranes.append(np.concatenate([shown[place][0] for place in places], firing.dim))
            spikes.append(np.concatenate([shown[place][1] for place in places], firing.dim))
        return Seen(found[0], found[1:count], membranes, spikes)


def _firing_of(net: SpikingNet) -> list[_Firing]:
    found = []
    for spec, (_, unit) in zip(net.state_spec(), spiking_units(net), strict=True):
        assert unit.neuron is not None
        cell = cell_of(unit.neuron, spec.shape, WATCH)
        found.append(
            _Firing(cell.rest, cell.dim) if isinstance(cell, ReversibleCell) else _Firing()
        )
    return found


def _points_of(model: "onnx.ModelProto") -> list[_Point]:
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
            points.append(_Point(h, "", node.output[0], slope, offset, multiple, wider, states))
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
        points.append(_Point(node.input[0], fired, casts[0]))
    return points


def _places_of(points: list[_Point], firing: list[_Firing], manifest: Manifest) -> list[list[int]]:
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


def _show(model: "onnx.ModelProto", names: list[str]) -> None:
    """Make inner values outputs of the graph."""
    from onnx import TensorProto, helper

    present = {value.name for value in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _streams_of(model: "onnx.ModelProto", net: SpikingNet) -> dict[str, tuple[float, float]]:
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


def _force(model: "onnx.ModelProto", points: list[_Point], streams: list[str]) -> None:
    """Let everything behind a neuron read a new input of the graph instead of the neuron's own spikes.

    The same for what branches add to streams.
    """
    from onnx import TensorProto, helper

    half, zero = "half_of_a_spike", "no_membrane"
    for name, value in ((half, 0.5), (zero, 0.0)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
    resets = {}  # membrane -> its point, and the forced spikes that set it to 0
    renamed: dict[str, str] = {}
    first = []
    for index, point in enumerate(points):
        name = _forced_name(index)
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        first.append(helper.make_node("Greater", [name, half], [f"{name}_fired"]))
        renamed[point.spikes] = name
        if point.wider is not None:
            renamed[point.spikes] = f"{name}_wider"
            wider = copy.deepcopy(point.wider)
            wider.input[0], wider.output[0] = name, f"{name}_wider"
            first.append(wider)
        if point.fired:
            renamed[point.fired] = f"{name}_fired"
        resets[point.membrane] = point, f"{name}_fired"
    for stream in streams:
        given = _given_name(stream)
        model.graph.input.append(helper.make_tensor_value_info(given, TensorProto.FLOAT, None))
        renamed[stream] = given
    own_casts = {point.spikes for point in points}
    nodes = list(model.graph.node)
    for node in nodes:
        if node.output[0] in own_casts:
            continue  # still shows what the neuron itself would have done
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        if node.op_type == "ThresholdedRelu":
            h, v = node.input[0], node.output[0]
            point, fired = resets[h]
            if node.attribute[0].f != point.threshold * point.multiple:
                raise ExportError(f"{h!r} fires at {point.threshold} and is reset elsewhere")
            node.CopyFrom(helper.make_node("Where", [fired, zero, h], [v]))
    del model.graph.node[:]
    model.graph.node.extend([*first, *nodes])


def _given_name(stream: str) -> str:
    return f"given/{stream}"


def _forced_name(index: int) -> str:
    return f"forced_{index}"
