"""The step that a sequence graph repeats, cut out of the file as a step graph of its own.

What is known of a step, neuron by neuron, is thereby known of the file. Nothing is rewritten but names: the body of
Scan as it stands, or one time step of an unrolled graph after all of them were found to be the same nodes, joined in
order.
"""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from revedge.errors import ExportError
from revedge.export.manifest import Manifest
from revedge.export.onnx_dims import input_dims, make_value, output_dims
from revedge.export.onnx_graph import BODY, OWN_DOMAIN
from revedge.export.onnx_kept import read_kept

if TYPE_CHECKING:
    import onnx


def contained_step(model: "onnx.ModelProto", manifest: Manifest) -> "onnx.ModelProto":
    """Return the step graph inside ``model``: ``x, state_i -> logits, next_state_i``. A step graph stays as it is.

    Raises:
        ExportError: the file does not repeat one step, or does not hand its states on in order.
    """
    import onnx
    from onnx import helper

    if manifest.graph == "step":
        return model
    if manifest.graph == "unrolled":
        repeated, constants = _of_unrolled(model, manifest), list(model.graph.initializer)
    else:
        repeated, constants = _of_scan(model, manifest)
    repeated, more = _as_they_are(repeated, manifest)
    constants += more
    nodes = [*_before(model, repeated, manifest), *repeated]
    alone = dataclasses.replace(manifest, graph="step", steps=None)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "revedge_contained_step",
        [make_value(name, dims) for name, dims in input_dims(alone)],
        [make_value(name, dims) for name, dims in output_dims(alone)],
        [one for one in constants if one.name in used],
    )
    opsets = [one for one in model.opset_import if not one.domain]
    step = helper.make_model(graph, opset_imports=opsets)
    step.ir_version = model.ir_version
    onnx.checker.check_model(step)
    return step


def _of_scan(
    model: "onnx.ModelProto", manifest: Manifest
) -> "tuple[list[onnx.NodeProto], list[onnx.TensorProto]]":
    scans = [node for node in model.graph.node if node.op_type == "Scan"]
    if len(scans) != 1:
        raise ExportError(f"a {manifest.graph} graph has {len(scans)} Scan nodes, not 1")
    body = next(attribute.g for attribute in scans[0].attribute if attribute.name == "body")
    given = [name for one in body.input if read_kept(name := one.name.removeprefix(BODY))]
    found = [value.name.removeprefix(BODY) for value in body.output][: len(given)]
    _demand_in_order(given, found)
    names = {body.input[-1].name: "x", body.output[-1].name: "logits"}
    sums = {value.name for value in body.output[len(found) : -1]}  # not of the step: for the mean
    own = [node for node in body.node if node.output[0] not in sums]
    return _renamed(own, names), [*body.initializer, *model.graph.initializer]


def _of_unrolled(model: "onnx.ModelProto", manifest: Manifest) -> "list[onnx.NodeProto]":
    if model.functions:
        return _of_function(model, manifest)
    assert manifest.steps is not None
    frames = _frames(model)
    first: list[bytes] = []
    nodes: list[onnx.NodeProto] = []
    written = {node.output[0] for node in model.graph.node}
    kept = dict(filter(None, map(_kept_by, written)))
    for t in range(manifest.steps):
        prefix = f"t{t}/"
        names = {}
        for state in manifest.states:
            new = kept.get(state.next, state.next)
            before = f"t{t - 1}/{new}" if t else f"rest_{state.name}"
            names[before] = new.replace(state.next, state.name)
        names |= {name: "x" for name, at in frames.items() if at == t}
        own = [node for node in model.graph.node if node.output[0].startswith(prefix)]
        nodes = _renamed(own, names, prefix)
        same = [node.SerializeToString(deterministic=True) for node in nodes]
        if t and same != first:
            raise ExportError(f"time step {t} of the unrolled graph is not the step before it")
        first = same
    return nodes


def _of_function(model: "onnx.ModelProto", manifest: Manifest) -> "list[onnx.NodeProto]":
    """The nodes of the function that every time step calls, after all calls were found to hand on their states."""
    calls = [node for node in model.graph.node if node.domain == OWN_DOMAIN]
    if len(model.functions) != 1 or len(calls) != manifest.steps:
        raise ExportError(
            f"the unrolled graph calls its function {len(calls)} times for {manifest.steps} steps"
        )
    function = model.functions[0]
    given, found = list(function.input), list(function.output)
    count = len(found) - 1  # without the logits
    _demand_in_order(given[1 : 1 + count], found[:count])
    frames = _frames(model)
    kept = [one for name in given[1 : 1 + count] if (one := read_kept(name))]
    before = [f"rest_{one.states[0]}" for one in kept]
    shared = list(calls[0].input)[1 + count :]
    for t, call in enumerate(calls):
        right_frame = manifest.static or frames.get(call.input[0]) == t
        if list(call.input)[1:] != [*before, *shared] or not right_frame:
            raise ExportError(f"time step {t} of the unrolled graph is not the step before it")
        before = list(call.output)[:count]
    image = {given[0]: calls[0].input[0] if manifest.static else "x"}
    names = image | dict(zip(given[1 + count :], shared, strict=True))
    return _renamed(function.node, names, "")


def _demand_in_order(given: list[str], found: list[str]) -> None:
    """Raise unless what goes out of a step is, one by one, what comes into the next."""
    for before, after in zip(given, found, strict=True):
        kept = read_kept(before)
        named = kept and (tuple(f"next_{state}" for state in kept.states), kept.multiple)
        new = read_kept(after)
        if named is None or new is None or named != (new.states, new.multiple):
            raise ExportError(f"the sequence graph hands {after!r} on as {before!r}")


def _kept_by(name: str) -> tuple[str, str] | None:
    """Of a value of the first time step that is a new state: the state, and under what name it is kept."""
    kept = read_kept(name.removeprefix("t0/")) if name.startswith("t0/") else None
    return None if kept is None else (kept.states[0], name.removeprefix("t0/"))


def _as_they_are(
    nodes: "list[onnx.NodeProto]", manifest: Manifest
) -> "tuple[list[onnx.NodeProto], list[onnx.TensorProto]]":
    """Where states come in and go out, turn what the step keeps into these, and back.

    Raises:
        ExportError: a state is not handed on.
    """
    values = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    kept = {name: one for name in values if (one := read_kept(name))}
    turn = _Turn()
    sizes: dict[str, int] = {}  # of values that are carried, along the channels
    for state in manifest.states:
        given = [name for name, one in kept.items() if state.name in one.states]
        found = [name for name, one in kept.items() if state.next in one.states]
        if not given or not found:
            raise ExportError("the sequence graph does not hand its states on from step to step")
        first = sum(sizes[name] for name in given[:-1])
        if kept[given[-1]].states[0] == state.name:  # else it is all of another state, too
            turn.into(state.name, given[-1], kept[given[-1]].multiple, first)
            sizes[given[-1]] = state.shape[0] - first
        turn.back([(name, kept[name].multiple) for name in found], state.next)
    return [*turn.first, *nodes, *turn.last], turn.constants()


class _Turn:
    """Nodes before a step, and behind it, that make states of what it carries: ``0 - value``, never a negative 0."""

    def __init__(self) -> None:
        self.first: list[onnx.NodeProto] = []
        self.last: list[onnx.NodeProto] = []
        self._numbers = {"zero_of_states": 0.0}
        self._sizes: dict[str, int] = {}

    def into(self, state: str, value: str, multiple: float, begin: int) -> None:
        """``value`` is ``multiple`` times ``state`` from channel ``begin`` on."""
        from onnx import helper

        if begin:
            bounds = [self._size(begin), self._size(2**31 - 1), self._size(1)]
            part = f"part_of_{state}"
            self.first.append(helper.make_node("Slice", [state, *bounds], [part]))
            state = part
        if state != value:
            self.first += self._times(state, -multiple, value)

    def back(self, values: list[tuple[str, float]], state: str) -> None:
        """``state`` is ``values``, each a multiple of it, one behind the other along the channels."""
        from onnx import helper

        if [name for name, _ in values] == [state]:
            return
        parts = [state] if len(values) == 1 else [f"{name}_of_{state}" for name, _ in values]
        for part, (name, multiple) in zip(parts, values, strict=True):
            self.last += self._times(name, -1.0 / multiple, part)
        if len(parts) > 1:
            self.last.append(helper.make_node("Concat", parts, [state], axis=1))

    def _times(self, value: str, factor: float, out: str) -> "list[onnx.NodeProto]":
        from onnx import helper

        name, larger = f"times_{factor}", f"larger_{out}"
        self._numbers[name] = factor
        return [
            helper.make_node("Mul", [value, name], [larger]),
            helper.make_node("Sub", ["zero_of_states", larger], [out]),
        ]

    def _size(self, value: int) -> str:
        self._sizes[f"size_{value}"] = value
        return f"size_{value}"

    def constants(self) -> "list[onnx.TensorProto]":
        """What the nodes read."""
        from onnx import TensorProto, helper

        numbers = [
            helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in self._numbers.items()
        ]
        sizes = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in self._sizes.items()]
        return [*numbers, *sizes]


def _frames(model: "onnx.ModelProto") -> dict[str, int]:
    """Value -> the time step whose frame it is."""
    splits = [node for node in model.graph.node if node.op_type == "Split" and node.input[0] == "x"]
    places = {part: t for node in splits for t, part in enumerate(node.output)}
    return {
        node.output[0]: places[node.input[0]]
        for node in model.graph.node
        if node.op_type == "Squeeze" and node.input[0] in places
    }


def _renamed(
    nodes: "Iterable[onnx.NodeProto]", names: dict[str, str], prefix: str = BODY
) -> "list[onnx.NodeProto]":
    """Copies with other names; what ``names`` does not list loses ``prefix``."""
    import onnx

    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for field in (copy.input, copy.output):
            for position, name in enumerate(field):
                field[position] = names.get(name, name.removeprefix(prefix))
        copies.append(copy)
    return copies


def _before(
    model: "onnx.ModelProto", repeated: "list[onnx.NodeProto]", manifest: Manifest
) -> "list[onnx.NodeProto]":
    """The nodes outside the step that it reads from: those of an image, which are computed once."""
    wanted = {name for node in repeated for name in node.input}
    states = {state.name for state in manifest.states}
    wanted -= {name for node in repeated for name in node.output} | states
    kept = []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]
