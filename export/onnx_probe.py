"""The twins of an ONNX file that show, or take, spikes; cut from the file itself, so weights and nodes are its own.

Of a sequence graph they are twins of the step that it repeats (onnx_contained.py).
"""

import copy
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from revedge.errors import ExportError
from revedge.export.manifest import Manifest
from revedge.export.onnx_contained import contained_step
from revedge.export.onnx_places import Point, firing_of, places_of, points_of, streams_of
from revedge.export.probes import Array, FileProbe, Seen
from revedge.export.runner import open_session
from revedge.models import SpikingNet

if TYPE_CHECKING:
    import onnx


class OnnxProbe(FileProbe):
    """Twins of ``model``, an export of ``net``.

    Raises:
        ExportError: the graph does not fire where the network does.
    """

    def __init__(self, model: "onnx.ModelProto", manifest: Manifest, net: SpikingNet) -> None:
        self._manifest = manifest
        self._firing = firing_of(net)
        step = copy.deepcopy(contained_step(model, manifest))
        self._plain = open_session(step.SerializeToString())
        points = points_of(step)
        streams = streams_of(step, net) if manifest.numerics == "float" else {}
        self._places = places_of(points, self._firing, manifest)
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


def _show(model: "onnx.ModelProto", names: list[str]) -> None:
    """Make inner values outputs of the graph."""
    from onnx import TensorProto, helper

    present = {value.name for value in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _force(model: "onnx.ModelProto", points: list[Point], streams: list[str]) -> None:
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
