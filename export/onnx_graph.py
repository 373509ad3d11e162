"""The four ONNX graphs of one network. All write the same step (onnx_step.py) and differ in what stands around it.

    step       x, state_i -> logits, next_state_i           one time step
    blocks     x, state_i -> logits, next_state_i           any number of steps: Scan around the step
    scan       x          -> logits, mean_logits            a whole recording from rest: Scan, states inside
    unrolled   x          -> logits, mean_logits            the same for a fixed T: the step T times, no control flow

Weights stand inside the Scan body, where onnxruntime prepares them once for its kernels (measured: a quarter faster
than outside). README.md in this folder is the specification of names and shapes.
"""

from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from revedge.export import onnx_rules  # noqa: F401 - each module of a form finds its rule
from revedge.export.inference import InferenceNet
from revedge.export.manifest import Manifest
from revedge.export.onnx_builder import IR_VERSIONS
from revedge.export.onnx_integers import INTEGERS
from revedge.export.onnx_kept import kept_name
from revedge.export.onnx_neurons import ONE_PASS
from revedge.export.onnx_step import StepGraph
from revedge.export.targets import TARGETS

if TYPE_CHECKING:
    import onnx

BODY = "step/"  # prefix of everything inside the body of Scan
OWN_DOMAIN = "revedge"  # of the function that an unrolled graph calls, where it calls one
_FUNCTIONS_FROM = 8  # version of the file format
GRAPHS = ("step", "blocks", "scan", "unrolled")
Dims = list[str | int]
Runs = list[tuple[str, nn.Module]]


def build_model(form: InferenceNet, manifest: Manifest) -> "onnx.ModelProto":
    """Return the ONNX model of ``form`` that ``manifest`` describes: its graph, opset, batch, steps and weights.

    Args:
        form: the PLAIN inference form of a network.
        manifest: ``graph`` is one of `GRAPHS`; ``opset`` is set.

    Raises:
        ExportError: a layer without a rule, or weights that do not lie on an 8-bit grid where int8 was asked for.
    """
    from onnx import helper

    assert manifest.opset is not None
    home = "" if manifest.graph in ("step", "unrolled") else "outer/"
    unrolled = manifest.graph == "unrolled"
    g = _empty(manifest, home, keeps_states=unrolled)
    g.ranks["x"] = len(input_dims(manifest)[0][1])
    {"step": _step, "blocks": _scan, "scan": _scan, "unrolled": _unrolled}[manifest.graph](
        g, form, manifest
    )
    domains = {OWN_DOMAIN: 1} if g.functions else {}
    graph = helper.make_graph(
        g.nodes,
        f"revedge_{manifest.graph}",
        [make_value(name, dims) for name, dims in input_dims(manifest)],
        [make_value(name, dims) for name, dims in output_dims(manifest)],
        list(g.constants.values()),
    )
    model = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid(name, version)
            for name, version in {"": manifest.opset, **domains}.items()
        ],
        functions=g.functions,
        ir_version=IR_VERSIONS[manifest.opset],
        producer_name="revedge",
        producer_version=manifest.versions.get("revedge", ""),
    )
    for key, text in sorted(manifest.to_strings().items()):
        model.metadata_props.add(key=key, value=text)
    return model


def input_dims(manifest: Manifest) -> list[tuple[str, Dims]]:
    """Names and dimensions of the inputs; a free one has a name instead of a size."""
    frames: Dims = [_batch(manifest), *manifest.in_shape]
    if manifest.graph != "step" and not manifest.static:
        frames = [_time(manifest), *frames]
    return [("x", frames), *_states(manifest, "name")]


def output_dims(manifest: Manifest) -> list[tuple[str, Dims]]:
    """Names and dimensions of the outputs."""
    logits: Dims = [_batch(manifest), manifest.num_classes]
    if manifest.graph == "step":
        return [("logits", logits), *_states(manifest, "next")]
    per_step = ("logits", [_time(manifest), *logits])
    if manifest.graph == "blocks":
        return [per_step, *_states(manifest, "next")]
    return [per_step, ("mean_logits", logits)]


def _states(manifest: Manifest, name: str) -> list[tuple[str, Dims]]:
    if manifest.graph not in ("step", "blocks"):
        return []
    batch = _batch(manifest)
    return [(getattr(state, name), [batch, *state.shape]) for state in manifest.states]


def _batch(manifest: Manifest) -> str | int:
    return "batch" if manifest.batch is None else manifest.batch


def _time(manifest: Manifest) -> str | int:
    return "time" if manifest.steps is None else manifest.steps


def _empty(manifest: Manifest, home: str, *, keeps_states: bool) -> StepGraph:
    assert manifest.opset is not None
    return StepGraph(
        manifest.opset,
        home,
        int8=manifest.weights == "int8",
        at_once=TARGETS[manifest.target].operators >= ONE_PASS,
        integers=manifest.weights == "int8" and TARGETS[manifest.target].operators >= INTEGERS,
        keeps_states=keeps_states,
        short=manifest.graph == "unrolled",
        at_rest=manifest.graph in ("scan", "unrolled"),
    )


def make_value(name: str, dims: Dims) -> "onnx.ValueInfoProto":
    """A float32 input or output."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def _runs(form: InferenceNet) -> Runs:
    return [(f"runs.{index}", run) for index, run in enumerate(form.runs)]


def _write(
    g: StepGraph,
    runs: Runs,
    x: str,
    states: list[str],
    manifest: Manifest,
) -> list[str]:
    """Write one time step; return the names of the new states that are carried, `StepGraph.carried` in order.

    They and the logits are called ``next_state_i`` and ``logits`` behind the prefix of the step; as in onnx_kept.py
    where a state is kept as a multiple or several share a value. ``states`` are the names of the given ones.
    """
    since = len(g.nodes)
    g.begin({name: state.shape for name, state in zip(states, manifest.states, strict=True)})
    for name, run in runs:
        x = g.apply(run, x, name)
    x = g.plain(x)
    g.drop_unread([x, *(one.value for one in g.carried)], since)
    names = [g.step + name for name in _kept_names(g, manifest, "next")]
    values = [one.value for one in g.carried]
    g.rename({x: f"{g.step}logits", **dict(zip(values, names, strict=True))}, since)
    return names


def _kept_names(g: StepGraph, manifest: Manifest, which: str) -> list[str]:
    """Names of what is carried, ``which`` comes in ("name") or goes out ("next")."""
    return [
        kept_name(getattr(manifest.states[one.index], which), one.multiple, one.others)
        for one in g.carried
    ]


def _step(g: StepGraph, form: InferenceNet, manifest: Manifest) -> None:
    _write(g, _runs(form), "x", [state.name for state in manifest.states], manifest)


def _scan(g: StepGraph, form: InferenceNet, manifest: Manifest) -> None:
    from onnx import helper

    lead, rest = _split(g, form, manifest)
    body = _empty(manifest, "", keeps_states=True)
    body.step = body.shared = BODY
    given = [f"{BODY}{state.name}" for state in manifest.states]
    if manifest.static:  # Scan goes over something of T entries; the image is seen from outside
        ticks = g.constant("ticks", np.zeros(manifest.timesteps, np.float32))
        body.ranks[lead] = g.ranks[lead]
        found = _write(body, rest, lead, given, manifest)
        scanned, frame = ticks, make_value(f"{BODY}tick", [])
    else:
        body.ranks[f"{BODY}x"] = g.ranks["x"] - 1
        found = _write(body, rest, f"{BODY}x", given, manifest)
        scanned, frame = "x", make_value(f"{BODY}x", [_batch(manifest), *manifest.in_shape])
    states = [given[one.index] for one in body.carried]
    given = [BODY + name for name in _kept_names(body, manifest, "name")]
    body.rename({old: new for old, new in zip(states, given, strict=True) if old != new})
    batch = _batch(manifest)
    logits: Dims = [batch, manifest.num_classes]
    shapes = [[batch, *one.shape] for one in body.carried]
    inputs = [make_value(name, shape) for name, shape in zip(given, shapes, strict=True)]
    outputs = [make_value(name, shape) for name, shape in zip(found, shapes, strict=True)]
    if manifest.graph == "scan":
        carried = _at_rest(g, body, manifest)
        results = [f"last_{name.removeprefix(BODY)}" for name in given]
        carried.append(_zeros(g, manifest, (manifest.num_classes,), 0.0, "total"))
        body.op("Add", [f"{BODY}total", f"{BODY}logits"], "new_total", rank=2)
        inputs.append(make_value(f"{BODY}total", logits))
        outputs.append(make_value(f"{BODY}new_total", logits))
        results.append("total_logits")
    else:
        carried = [
            _times(g, state.name, one.multiple)
            for state, one in zip(manifest.states, body.carried, strict=True)
        ]
        results = _kept_names(body, manifest, "next")
    graph = helper.make_graph(
        body.nodes,
        "revedge_step",
        [*inputs, frame],
        [*outputs, make_value(f"{BODY}logits", logits)],
        list(body.constants.values()),
    )
    g.nodes.append(
        helper.make_node(
            "Scan",
            [*carried, scanned],
            [*results, "logits"],
            "over_time",
            body=graph,
            num_scan_inputs=1,
        )
    )
    if manifest.graph == "scan":
        _mean(g, manifest, "total_logits")
        return
    for state, result, one in zip(manifest.states, results, body.carried, strict=True):
        if result != state.next:
            g.rename({_times(g, result, 1.0 / one.multiple): state.next})


def _times(g: StepGraph, state: str, multiple: float) -> str:
    """A multiple of a state; of a negative one ``0 - state``, which is never a negative zero."""
    g.ranks.setdefault(state, 0)
    if abs(multiple) != 1.0:
        state = g.op("Mul", [state, g.scalar(abs(multiple))], f"larger_{state}")
    return state if multiple > 0 else g.op("Sub", [g.scalar(0.0), state], f"minus_{state}")


def _unrolled(g: StepGraph, form: InferenceNet, manifest: Manifest) -> None:
    assert manifest.steps is not None
    x, rest = _split(g, form, manifest)
    states = [f"rest_{state.name}" for state in manifest.states]
    total, per_step, begin = "", list[str](), len(g.nodes)
    frames = [x] * manifest.steps if manifest.static else _frames(g, manifest.steps)
    assert manifest.opset is not None
    called = TARGETS[manifest.target].functions and IR_VERSIONS[manifest.opset] >= _FUNCTIONS_FROM
    shared: list[str] = []
    for t in range(manifest.steps):
        g.step = f"t{t}/"
        if not called:
            found = _write(g, rest, frames[t], states, manifest)
            for one, name in zip(g.carried, found, strict=True):
                states[one.index] = name
            logits = f"t{t}/logits"
        else:
            if not t:
                shared = _function(g, rest, x if manifest.static else "", manifest)
                states = [states[one.index] for one in g.carried]
            *states, logits = _call(g, [frames[t], *states, *shared])
        g.step = ""
        if not t:  # what begins at rest is known only now, and stands in front
            made = len(g.nodes)
            _at_rest(g, g, manifest)
            g.nodes[begin:] = [*g.nodes[made:], *g.nodes[begin:made]]
        per_step.append(g.op("Unsqueeze", [logits, g.sizes(0)], f"l{t}"))
        total = g.op("Add", [total, logits], f"s{t}") if t else logits
    joined = g.op("Concat", per_step, "all_logits", axis=0)
    g.rename({joined: "logits"})
    _mean(g, manifest, total)


def _function(g: StepGraph, runs: Runs, image: str, manifest: Manifest) -> list[str]:
    """Write the step once, as a function of the file's own; return the names of what all its calls share.

    Args:
        g: gets the function.
        runs: of the step.
        image: what a static model computed once, instead of a frame for each step.
        manifest: of the graph.
    """
    from onnx import helper

    since, prefix = len(g.nodes), g.step
    frame, states = f"{prefix}x", [f"{prefix}{state.name}" for state in manifest.states]
    g.ranks[frame] = g.ranks[image] if image else g.ranks["x"] - 1
    g.times[frame] = g.times.get(image, 1.0)
    found = _write(g, runs, frame, states, manifest)
    made = g.nodes[since:]
    inside = [node for node in made if node.output[0].startswith(prefix)]
    g.nodes[since:] = [node for node in made if not node.output[0].startswith(prefix)]
    within = {frame, *states, *(name for node in inside for name in node.output)}
    shared = list(dict.fromkeys(n for node in inside for n in node.input if n not in within))
    kept = [prefix + name for name in _kept_names(g, manifest, "name")]
    turned = {states[one.index]: name for one, name in zip(g.carried, kept, strict=True)}
    for node in inside:
        for field in (node.input, node.output):
            for position, name in enumerate(field):
                field[position] = turned.get(name, name).removeprefix(prefix)
    given = [frame, *kept, *shared]
    function = helper.make_function(
        OWN_DOMAIN,
        "Step",
        [name.removeprefix(prefix) for name in given],
        [name.removeprefix(prefix) for name in (*found, f"{prefix}logits")],
        inside,
        [helper.make_opsetid("", g.opset)],
    )
    g.functions.append(function)
    return shared


def _call(g: StepGraph, inputs: list[str]) -> list[str]:
    """One time step; return the names of the new states and of the logits: numbers, as all in such a graph."""
    from onnx import helper

    outputs = [f"{g.step}{index:x}" for index in range(len(g.carried) + 1)]
    g.nodes.append(helper.make_node("Step", inputs, outputs, domain=OWN_DOMAIN))
    g.ranks[outputs[-1]] = 2
    return outputs


def _frames(g: StepGraph, steps: int) -> list[str]:
    parts = g.split("x", 0, *[1] * steps, label="f")
    rank = g.ranks["x"] - 1
    return [g.op("Squeeze", [part, g.sizes(0)], f"x{t}", rank=rank) for t, part in enumerate(parts)]


def _split(g: StepGraph, form: InferenceNet, manifest: Manifest) -> tuple[str, Runs]:
    """For an image: write the leading runs without neurons once; what they give, and the runs of every step."""
    runs, x = _runs(form), "x"
    neurons = any(
        run.takes for _, run in runs
    )  # without any, the logits would be made in front of the step
    while manifest.static and neurons and runs[0][1].takes == 0:
        name, run = runs.pop(0)
        x = g.apply(run, x, name)
    return g.settled(x), runs  # every step reads it


def _at_rest(g: StepGraph, step: StepGraph, manifest: Manifest) -> list[str]:
    """What ``step`` carries, as a recording begins with it."""
    states = [(manifest.states[one.index], one.shape) for one in step.carried]
    return [_zeros(g, manifest, shape, s.init, f"rest_{s.name}") for s, shape in states]


def _zeros(
    g: StepGraph, manifest: Manifest, shape: tuple[int, ...], value: float, label: str
) -> str:
    """A tensor ``[B, *shape]`` full of ``value``."""
    from onnx import numpy_helper

    if manifest.batch is not None:
        sizes = g.sizes(manifest.batch, *shape)
    else:
        if "batch_size" not in g.ranks:
            axis = 0 if manifest.static else 1
            whole = g.op("Shape", ["x"], "shape_of_x", rank=1)
            g.rename({g.op("Slice", [whole, g.sizes(axis), g.sizes(axis + 1)]): "batch_size"})
        sizes = g.op("Concat", ["batch_size", g.sizes(*shape)], f"{label}_shape", axis=0)
    filling = numpy_helper.from_array(np.array([value], np.float32))
    return g.op("ConstantOfShape", [sizes], label, rank=1 + len(shape), value=filling)


def _mean(g: StepGraph, manifest: Manifest, total: str) -> None:
    """The sum of the logits, taken in order of time, divided by the number of steps: as the step runner does it."""
    if manifest.steps is not None:
        count = g.scalar(float(manifest.steps))
    else:
        whole = g.op("Shape", ["x"], "steps_and_more", rank=1)
        first = g.op("Slice", [whole, g.sizes(0), g.sizes(1)])
        count = g.op("Cast", [first], "steps", to=1)
    g.ranks[total] = 2
    g.rename({g.op("Div", [total, count]): "mean_logits"})
