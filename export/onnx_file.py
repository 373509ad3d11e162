"""Writing an ONNX file, and reading it back: opset, names, dimensions, operators, nothing outside the file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from revedge.errors import ExportError, UsageError
from revedge.export.inference import InferenceNet
from revedge.export.manifest import Manifest
from revedge.export.onnx_builder import OPSETS
from revedge.export.onnx_dims import Dims, input_dims, output_dims
from revedge.export.onnx_graph import OWN_DOMAIN, build_model
from revedge.export.onnx_operators import graphs, operators
from revedge.export.targets import TARGETS

if TYPE_CHECKING:
    import onnx

_LARGEST_BYTES = 1 << 31  # of a protobuf file


def write_onnx(form: InferenceNet, manifest: Manifest, path: Path) -> None:
    """Write the graph of ``form`` that ``manifest`` describes, and read it back.

    Args:
        form: the PLAIN inference form of a network.
        manifest: says what is written and goes into ``metadata_props``.
        path: of the file; written completely or not at all.

    Time: a tenth of a second for each 10 MiB of weights; an unrolled graph a millisecond per node.

    Raises:
        ExportError: a layer without a rule, a model above 2 GiB, or a file that is not what was asked for.
    """
    model = build_model(form, manifest)
    if model.ByteSize() >= _LARGEST_BYTES:
        raise ExportError(
            "the model is larger than the 2 GiB that one ONNX file can hold; use --format torchscript"
        )
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        check_onnx(temporary, manifest, path.name)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_opset(opset: int) -> None:
    """Raise UsageError unless ``opset`` can be written."""
    if opset not in OPSETS:
        raise UsageError(
            f"opset {opset} cannot be written; choose {OPSETS.start} to {OPSETS.stop - 1} "
            "(17 for TensorRT 8.4 to 8.6, 18 for newer runtimes)"
        )


def check_onnx(path: Path, manifest: Manifest, name: str = "") -> "onnx.ModelProto":
    """Read a file, compare it with what was asked for, and return it; errors call it ``name``, or as it is called.

    Raises:
        ExportError: what differs.
    """
    import onnx

    name = name or path.name
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx's errors have no common base
        raise ExportError(f"{name} does not pass the ONNX checker: {_first_line(error)}") from None
    found = {entry.domain: entry.version for entry in model.opset_import}
    own = {OWN_DOMAIN: 1} if model.functions else {}
    if found != {"": manifest.opset, **own}:
        raise ExportError(f"opset {manifest.opset} was asked for, {name} has {found}")
    for graph in graphs(model.graph):
        for one in graph.initializer:
            if one.data_location == onnx.TensorProto.EXTERNAL:
                raise ExportError(f"{name} keeps {one.name} outside the file")
    allowed = TARGETS[manifest.target].operators
    odd = sorted(set(operators(model)) - allowed)
    if odd:
        raise ExportError(
            f"{name} needs {', '.join(odd)}, which --target {manifest.target} does not run; use another --target "
            "or --format"
        )
    for what, values, expected in (
        ("input", model.graph.input, input_dims(manifest)),
        ("output", model.graph.output, output_dims(manifest)),
    ):
        actual = [(value.name, _dims(value)) for value in values]
        if actual != expected:
            raise ExportError(f"{name} has the {what}s {actual} where {expected} were asked for")
    stored = {entry.key: entry.value for entry in model.metadata_props}
    if Manifest.from_strings(stored, name) != manifest:
        raise ExportError(f"{name} does not carry the metadata that were asked for")
    return model


def _dims(value: "onnx.ValueInfoProto") -> Dims:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
