"""A time step T times, without control flow: nodes written out, or calls of a function of the file's own."""

from revedge.export.inference import InferenceNet
from revedge.export.manifest import Manifest
from revedge.export.onnx_around import (
    Runs,
    at_rest,
    kept_names,
    split_image,
    write_mean,
    write_step,
)
from revedge.export.onnx_builder import IR_VERSIONS
from revedge.export.onnx_step import StepGraph
from revedge.export.targets import TARGETS

OWN_DOMAIN = "revedge"  # of the function that an unrolled graph calls, where it calls one
_FUNCTIONS_FROM = 8  # version of the file format


def write_unrolled(g: StepGraph, form: InferenceNet, manifest: Manifest) -> None:
    """Write a graph of a fixed number of steps."""
    assert manifest.steps is not None
    x, rest = split_image(g, form, manifest)
    states = [f"rest_{state.name}" for state in manifest.states]
    total, per_step, begin = "", list[str](), len(g.nodes)
    frames = [x] * manifest.steps if manifest.static else _frames(g, manifest.steps)
    assert manifest.opset is not None
    called = TARGETS[manifest.target].functions and IR_VERSIONS[manifest.opset] >= _FUNCTIONS_FROM
    shared: list[str] = []
    for t in range(manifest.steps):
        g.step = f"t{t}/"
        if not called:
            found = write_step(g, rest, frames[t], states, manifest)
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
            at_rest(g, g, manifest)
            g.nodes[begin:] = [*g.nodes[made:], *g.nodes[begin:made]]
        per_step.append(g.op("Unsqueeze", [logits, g.sizes(0)], f"l{t}"))
        total = g.op("Add", [total, logits], f"s{t}") if t else logits
    joined = g.op("Concat", per_step, "all_logits", axis=0)
    g.rename({joined: "logits"})
    write_mean(g, manifest, total)


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
    found = write_step(g, runs, frame, states, manifest)
    made = g.nodes[since:]
    inside = [node for node in made if node.output[0].startswith(prefix)]
    g.nodes[since:] = [node for node in made if not node.output[0].startswith(prefix)]
    within = {frame, *states, *(name for node in inside for name in node.output)}
    shared = list(dict.fromkeys(n for node in inside for n in node.input if n not in within))
    kept = [prefix + name for name in kept_names(g, manifest, "name")]
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
