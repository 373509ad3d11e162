"""The four ONNX graphs of one network. All write the same step (onnx_step.py) and differ in what stands around it.

    step       x, state_i -> logits, next_state_i           one time step
    blocks     x, state_i -> logits, next_state_i           any number of steps: Scan around the step
    scan       x          -> logits, mean_logits            a whole recording from rest: Scan, states inside
    unrolled   x          -> logits, mean_logits            the same for a fixed T: the step T times, no control flow

README.md in this folder is the specification of names and shapes.
"""

from typing import TYPE_CHECKING

from revedge.export import onnx_rules  # noqa: F401 - each module of a form finds its rule
from revedge.export.inference import InferenceNet
from revedge.export.manifest import Manifest
from revedge.export.onnx_around import empty_step, runs_of, write_step
from revedge.export.onnx_builder import IR_VERSIONS
from revedge.export.onnx_dims import input_dims, make_value, output_dims
from revedge.export.onnx_scan import BODY as BODY
from revedge.export.onnx_scan import write_scan
from revedge.export.onnx_step import StepGraph
from revedge.export.onnx_unrolled import OWN_DOMAIN as OWN_DOMAIN
from revedge.export.onnx_unrolled import write_unrolled

if TYPE_CHECKING:
    import onnx

GRAPHS = ("step", "blocks", "scan", "unrolled")


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
    g = empty_step(manifest, home, keeps_states=unrolled)
    g.ranks["x"] = len(input_dims(manifest)[0][1])
    {"step": _step, "blocks": write_scan, "scan": write_scan, "unrolled": write_unrolled}[
        manifest.graph
    ](g, form, manifest)
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


def _step(g: StepGraph, form: InferenceNet, manifest: Manifest) -> None:
    write_step(g, runs_of(form), "x", [state.name for state in manifest.states], manifest)
