"""Names and dimensions of what the four ONNX graphs take and give; README.md in this folder is their specification."""

from typing import TYPE_CHECKING

from revedge.export.manifest import Manifest

if TYPE_CHECKING:
    import onnx

Dims = list[str | int]


def input_dims(manifest: Manifest) -> list[tuple[str, Dims]]:
    """Names and dimensions of the inputs; a free one has a name instead of a size."""
    frames: Dims = [batch_dim(manifest), *manifest.in_shape]
    if manifest.graph != "step" and not manifest.static:
        frames = [time_dim(manifest), *frames]
    return [("x", frames), *_states(manifest, "name")]


def output_dims(manifest: Manifest) -> list[tuple[str, Dims]]:
    """Names and dimensions of the outputs."""
    logits: Dims = [batch_dim(manifest), manifest.num_classes]
    if manifest.graph == "step":
        return [("logits", logits), *_states(manifest, "next")]
    per_step = ("logits", [time_dim(manifest), *logits])
    if manifest.graph == "blocks":
        return [per_step, *_states(manifest, "next")]
    return [per_step, ("mean_logits", logits)]


def _states(manifest: Manifest, name: str) -> list[tuple[str, Dims]]:
    if manifest.graph not in ("step", "blocks"):
        return []
    batch = batch_dim(manifest)
    return [(getattr(state, name), [batch, *state.shape]) for state in manifest.states]


def batch_dim(manifest: Manifest) -> str | int:
    """The dimension of the batch: its name if it is free."""
    return "batch" if manifest.batch is None else manifest.batch


def time_dim(manifest: Manifest) -> str | int:
    """The dimension of time steps: its name if it is free."""
    return "time" if manifest.steps is None else manifest.steps


def make_value(name: str, dims: Dims) -> "onnx.ValueInfoProto":
    """A float32 input or output."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
