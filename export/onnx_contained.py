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
from revedge.export.onnx_graph import BODY, OWN_DOMAIN, input_dims, make_value, output_dims
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
    given = [value.name for value in body.input][: len(manifest.states)]
    found = [value.name for value in body.output][: len(manifest.states)]
    places = [*zip(given, manifest.states, strict=True), *zip(found, manifest.states, strict=True)]
    for name, state in places:
        kept = read_kept(name.removeprefix(BODY))
        if kept is None or kept[0] not in (state.name, state.next):
            raise ExportError(f"Scan hands on {name!r} as {state.name}")
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
    function, count = model.functions[0], len(manifest.states)
    given, found = list(function.input), list(function.output)
    for told, kept in zip(
        [*manifest.states, *manifest.states],
        map(read_kept, given[1 : 1 + count] + found[:count]),
        strict=True,
    ):
        if kept is None or kept[0] not in (told.name, told.next):
            raise ExportError(f"the step's function hands on {kept} as {told.name}")
    frames = _frames(model)
    before = [f"rest_{state.name}" for state in manifest.states]
    shared = list(calls[0].input)[1 + count :]
    for t, call in enumerate(calls):
        right_frame = manifest.static or frames.get(call.input[0]) == t
        if list(call.input)[1:] != [*before, *shared] or not right_frame:
            raise ExportError(f"time step {t} of the unrolled graph is not the step before it")
        before = list(call.output)[:count]
    image = {given[0]: calls[0].input[0] if manifest.static else "x"}
    names = image | dict(zip(given[1 + count :], shared, strict=True))
    return _renamed(function.node, names, "")


def _kept_by(name: str) -> tuple[str, str] | None:
    """Of a value of the first time step that is a new state: the state, and under what name it is kept."""
    kept = read_kept(name.removeprefix("t0/")) if name.startswith("t0/") else None
    return None if kept is None else (kept[0], name.removeprefix("t0/"))


def _as_they_are(
    nodes: "list[onnx.NodeProto]", manifest: Manifest
) -> "tuple[list[onnx.NodeProto], list[onnx.TensorProto]]":
    """Where states come in and go out, turn those that the step keeps as multiples into these, and back."""
    from onnx import TensorProto, helper

    states = {state.name for state in manifest.states} | {state.next for state in manifest.states}
    first: list[onnx.NodeProto] = []
    last: list[onnx.NodeProto] = []
    constants = {"zero_of_states": 0.0}
    for name in dict.fromkeys(name for node in nodes for name in (*node.input, *node.output)):
        kept = read_kept(name)
        if kept is None or kept[0] not in states or kept[1] == 1.0:
            continue
        state, multiple = kept
        comes_in = state in {one.name for one in manifest.states}
        factor = -multiple if comes_in else -1.0 / multiple
        constants[f"times_{factor}"] = factor
        larger = f"larger_{name}"
        there, here = (state, name) if comes_in else (name, state)
        turn = [
            helper.make_node("Mul", [there, f"times_{factor}"], [larger]),
            helper.make_node("Sub", ["zero_of_states", larger], [here]),
        ]
        (first if comes_in else last).extend(turn)
    made = [helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in constants.items()]
    return [*first, *nodes, *last], made


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
    if not states <= wanted:
        raise ExportError("the sequence graph does not hand its states on from step to step")
    wanted -= {name for node in repeated for name in node.output} | states
    kept = []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]
