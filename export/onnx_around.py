"""One time step written into an ONNX graph, and what stands around it in graphs of several: begin, end, image."""

import numpy as np
from torch import nn

from revedge.export.inference import InferenceNet
from revedge.export.manifest import Manifest
from revedge.export.onnx_integers import INTEGERS
from revedge.export.onnx_kept import kept_name
from revedge.export.onnx_neurons import ONE_PASS
from revedge.export.onnx_step import StepGraph
from revedge.export.targets import TARGETS

Runs = list[tuple[str, nn.Module]]


def empty_step(manifest: Manifest, home: str, *, keeps_states: bool) -> StepGraph:
    """A graph without nodes for steps of ``manifest``."""
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


def runs_of(form: InferenceNet) -> Runs:
    """The runs of a form and their names."""
    return [(f"runs.{index}", run) for index, run in enumerate(form.runs)]


def write_step(
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
    names = [g.step + name for name in kept_names(g, manifest, "next")]
    values = [one.value for one in g.carried]
    g.rename({x: f"{g.step}logits", **dict(zip(values, names, strict=True))}, since)
    return names


def kept_names(g: StepGraph, manifest: Manifest, which: str) -> list[str]:
    """Names of what is carried, ``which`` comes in ("name") or goes out ("next")."""
    return [
        kept_name(getattr(manifest.states[one.index], which), one.multiple, one.others)
        for one in g.carried
    ]


def split_image(g: StepGraph, form: InferenceNet, manifest: Manifest) -> tuple[str, Runs]:
    """For an image: write the leading runs without neurons once; what they give, and the runs of every step."""
    runs, x = runs_of(form), "x"
    neurons = any(
        run.takes for _, run in runs
    )  # without any, the logits would be made in front of the step
    while manifest.static and neurons and runs[0][1].takes == 0:
        name, run = runs.pop(0)
        x = g.apply(run, x, name)
    return g.settled(x), runs  # every step reads it


def at_rest(g: StepGraph, step: StepGraph, manifest: Manifest) -> list[str]:
    """What ``step`` carries, as a recording begins with it."""
    states = [(manifest.states[one.index], one.shape) for one in step.carried]
    return [filled(g, manifest, shape, s.init, f"rest_{s.name}") for s, shape in states]


def filled(
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


def write_mean(g: StepGraph, manifest: Manifest, total: str) -> None:
    """The sum of the logits, taken in order of time, divided by the number of steps: as the step runner does it."""
    if manifest.steps is not None:
        count = g.scalar(float(manifest.steps))
    else:
        whole = g.op("Shape", ["x"], "steps_and_more", rank=1)
        first = g.op("Slice", [whole, g.sizes(0), g.sizes(1)])
        count = g.op("Cast", [first], "steps", to=1)
    g.ranks[total] = 2
    g.rename({g.op("Div", [total, count]): "mean_logits"})
