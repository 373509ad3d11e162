"""The ONNX step graph: ``x, state_0, ...`` -> ``logits, next_state_0, ...``; the batch is dynamic.

What is written is read back and held against what was asked: opset, names, dimensions, no data outside the file.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from revedge.errors import ExportError, UsageError
from revedge.export.inference import InferenceNet
from revedge.export.manifest import Manifest

DEFAULT_OPSET = 18
OPSETS = range(13, 24)
_LEGACY_UP_TO = (
    17  # the exporter that is built on torch.export begins at 18, whatever it is asked for
)
_EXAMPLE_BATCH = 2  # 0 and 1 would be fixed as constants
_LARGEST_BYTES = 1 << 31  # of a protobuf file


def write_onnx(form: InferenceNet, manifest: Manifest, path: Path, opset: int) -> None:
    """Write the step graph of ``form``.

    Args:
        form: the PLAIN inference form of a network.
        manifest: goes into ``metadata_props``; names inputs and outputs.
        path: of the file; written completely or not at all.
        opset: 13 to 23. Up to 17 by torch's older exporter, which newer torch may no longer have.

    Time: 1 to 20 s from opset 18 on, less than 1 s below.

    Raises:
        UsageError: ``opset`` out of range.
        ExportError: the exporter failed, or wrote something else than was asked.
    """
    check_opset(opset)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with _exporter_silenced():
            _export(form, manifest, temporary, opset)
        _finish(temporary, manifest)
        check_onnx(temporary, manifest, opset)
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


def check_onnx(path: Path, manifest: Manifest, opset: int) -> None:
    """Read a file back and compare it with what was asked.

    Raises:
        ExportError: what differs.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx's errors have no common base
        raise ExportError(
            f"{path.name} does not pass the ONNX checker: {_first_line(error)}"
        ) from None
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("", found.get("ai.onnx")) != opset:
        raise ExportError(
            f"opset {opset} was asked for, the exporter wrote {found}; ask for another opset"
        )
    outside = [
        one.name
        for one in model.graph.initializer
        if one.data_location == onnx.TensorProto.EXTERNAL
    ]
    if outside:
        raise ExportError(
            f"{path.name} keeps {outside[0]} outside the file; the model is too large for one file"
        )
    expected = _dims(manifest)
    actual = [
        (value.name, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in [*model.graph.input, *model.graph.output]
    ]
    if actual != expected:
        wrong = next(
            (a, e) for a, e in zip([*actual, None], [*expected, None], strict=False) if a != e
        )
        raise ExportError(f"{path.name} has {wrong[0]} where {wrong[1]} was asked for")
    stored = {entry.key: entry.value for entry in model.metadata_props}
    if Manifest.from_strings(stored, path.name) != manifest:
        raise ExportError(f"{path.name} does not carry the metadata that were asked for")


def _export(form: InferenceNet, manifest: Manifest, path: Path, opset: int) -> None:
    batch = _EXAMPLE_BATCH
    x = torch.zeros(batch, *manifest.in_shape)
    states: list[Tensor] = [torch.full((batch, *s.shape), s.init) for s in manifest.states]
    inputs = ["x", *(state.name for state in manifest.states)]
    outputs = ["logits", *(state.next for state in manifest.states)]
    common: dict[str, Any] = {
        "opset_version": opset,
        "input_names": inputs,
        "output_names": outputs,
    }
    if opset <= _LEGACY_UP_TO:
        common |= {
            "dynamo": False,
            "dynamic_axes": {name: {0: "batch"} for name in [*inputs, *outputs]},
        }
    else:
        free = ({0: "batch"}, [{0: "batch"} for _ in states])
        common |= {"dynamo": True, "external_data": False, "dynamic_shapes": free, "verbose": False}
    try:
        torch.onnx.export(form, (x, states), str(path), **common)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the exporters' errors have no common base
        raise ExportError(
            f"torch's ONNX exporter failed at opset {opset}: {_first_line(error)}; try another --opset, or "
            "--format torchscript"
        ) from None


def _finish(path: Path, manifest: Manifest) -> None:
    """Drop what the exporter noted about its own source code, and stamp the metadata."""
    import onnx

    model = onnx.load(str(path))
    for graph_part in [*model.graph.node, *model.graph.value_info, model.graph]:
        del graph_part.metadata_props[:]
        graph_part.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    model.doc_string = ""
    del model.metadata_props[:]
    for key, text in sorted(manifest.to_strings().items()):
        model.metadata_props.add(key=key, value=text)
    model.producer_name = "revedge"
    model.producer_version = manifest.versions.get("revedge", "")
    model.graph.name = "revedge_step"
    if model.ByteSize() >= _LARGEST_BYTES:
        raise ExportError(
            "the model is larger than the 2 GiB that one ONNX file can hold; use --format torchscript"
        )
    path.write_bytes(model.SerializeToString(deterministic=True))


def _dims(manifest: Manifest) -> list[tuple[str, list[str | int]]]:
    states = manifest.states
    batch: list[str | int] = ["batch"]
    return [
        ("x", [*batch, *manifest.in_shape]),
        *((state.name, [*batch, *state.shape]) for state in states),
        ("logits", [*batch, manifest.num_classes]),
        *((state.next, [*batch, *state.shape]) for state in states),
    ]


@contextmanager
def _exporter_silenced() -> Iterator[None]:
    """Silence what torch's exporters say about themselves; warnings of anything else still show."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text, category in (
                (r"You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
                (r"The feature will be removed", DeprecationWarning),
                (r"# The axis name: batch will not be used", UserWarning),
                (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
            ):
                warnings.filterwarnings("ignore", message=text, category=category)
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning, module=r"(torch\.onnx|onnxscript|onnx)"
            )
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
