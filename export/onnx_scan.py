"""The Scan around a time step, for whole recordings from rest and for blocks of steps.

Weights stand inside its body, where onnxruntime prepares them once for its kernels (measured: a quarter faster than
outside).
"""

import numpy as np

from revedge.export.inference import InferenceNet
from revedge.export.manifest import Manifest
from revedge.export.onnx_around import (
    at_rest,
    empty_step,
    filled,
    kept_names,
    split_image,
    write_mean,
    write_step,
)
from revedge.export.onnx_dims import Dims, batch_dim, make_value
from revedge.export.onnx_step import StepGraph

BODY = "step/"  # prefix of everything inside the body of Scan


def write_scan(g: StepGraph, form: InferenceNet, manifest: Manifest) -> None:
    """Write a graph of any number of steps, "scan" or "blocks"."""
    from onnx import helper

    lead, rest = split_image(g, form, manifest)
    body = empty_step(manifest, "", keeps_states=True)
    body.step = body.shared = BODY
    given = [f"{BODY}{state.name}" for state in manifest.states]
    if manifest.static:  # Scan goes over something of T entries; the image is seen from outside
        ticks = g.constant("ticks", np.zeros(manifest.timesteps, np.float32))
        body.ranks[lead] = g.ranks[lead]
        found = write_step(body, rest, lead, given, manifest)
        scanned, frame = ticks, make_value(f"{BODY}tick", [])
    else:
        body.ranks[f"{BODY}x"] = g.ranks["x"] - 1
        found = write_step(body, rest, f"{BODY}x", given, manifest)
        scanned, frame = "x", make_value(f"{BODY}x", [batch_dim(manifest), *manifest.in_shape])
    states = [given[one.index] for one in body.carried]
    given = [BODY + name for name in kept_names(body, manifest, "name")]
    body.rename({old: new for old, new in zip(states, given, strict=True) if old != new})
    batch = batch_dim(manifest)
    logits: Dims = [batch, manifest.num_classes]
    shapes = [[batch, *one.shape] for one in body.carried]
    inputs = [make_value(name, shape) for name, shape in zip(given, shapes, strict=True)]
    outputs = [make_value(name, shape) for name, shape in zip(found, shapes, strict=True)]
    if manifest.graph == "scan":
        carried = at_rest(g, body, manifest)
        results = [f"last_{name.removeprefix(BODY)}" for name in given]
        carried.append(filled(g, manifest, (manifest.num_classes,), 0.0, "total"))
        body.op("Add", [f"{BODY}total", f"{BODY}logits"], "new_total", rank=2)
        inputs.append(make_value(f"{BODY}total", logits))
        outputs.append(make_value(f"{BODY}new_total", logits))
        results.append("total_logits")
    else:
        carried = [
            _times(g, state.name, one.multiple)
            for state, one in zip(manifest.states, body.carried, strict=True)
        ]
        results = kept_names(body, manifest, "next")
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
        write_mean(g, manifest, "total_logits")
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
