"""Run an exported ONNX step graph as a stream. Needs numpy and onnxruntime, and nothing else: no torch.

    runner = StreamRunner("model.onnx")
    runner.reset(batch=1)
    for frame in camera:                  # float32 [1, C, H, W]
        logits = runner.step(frame)

The file is stateless; the runner carries each neuron's state from one step to the next and never resets by itself.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from revedge.errors import ExportError, UsageError
from revedge.export.manifest import Manifest

Float32 = npt.NDArray[np.float32]
_STATE_LIMIT_BYTES = 1 << 34


class StreamRunner:
    """The state of one or several streams (a batch) and the file that moves it on.

    Args:
        path: an ONNX file of `revedge export`.
        threads: of onnxruntime. 1 is fastest for small nets, and keeps a busy board responsive.

    Attributes:
        manifest: what the file says about itself (`revedge.export.manifest.Manifest`).
        steps_done: steps since the last `reset`.

    Memory: the weights, one batch of states twice, and what onnxruntime needs for one step.

    Raises:
        UsageError: no file of that name.
        ExportError: damaged, or not a step graph of revedge.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads={threads} is not a number of threads; use 1 or more")
        self.path = Path(path)
        self._session = open_session(self.path, threads)
        self.manifest = read_manifest(self._session, str(path))
        self._outputs = ["logits", *(state.next for state in self.manifest.states)]
        self._check_names()
        self._states: dict[str, Float32] = {}
        self._batch: int | None = None
        self.steps_done = 0

    def reset(self, batch: int = 1) -> None:
        """Put ``batch`` streams at rest; call it before the first step and between recordings.

        Raises:
            UsageError: ``batch`` is below 1, or its states need more than 16 GiB.
        """
        if batch < 1:
            raise UsageError(f"batch={batch} is not a number of streams; use 1 or more")
        values = sum(int(np.prod(state.shape, dtype=np.float64)) for state in self.manifest.states)
        if 4 * batch * values > _STATE_LIMIT_BYTES:
            raise UsageError(f"batch={batch} needs {4 * batch * values} bytes of state; use fewer")
        self._states = {
            state.name: np.full((batch, *state.shape), state.init, np.float32)
            for state in self.manifest.states
        }
        self._batch = batch
        self.steps_done = 0

    def step(self, x: Float32) -> Float32:
        """Move all streams on by one step.

        Args:
            x: one frame per stream, float32 ``[B, C, H, W]``, already multiplied by the file's input scale.

        Returns:
            logits of this step ``[B, num_classes]``; predictions are means over steps.

        Raises:
            UsageError: `reset` was not called, or ``x`` is of another batch, shape or dtype.
        """
        self._check_frame(x)
        try:
            found = self._session.run(self._outputs, {"x": np.ascontiguousarray(x), **self._states})
        except Exception as error:  # onnxruntime's errors have no common base
            raise ExportError(f"{self.path} does not run: {_first_line(error)}") from None
        for state, value in zip(self.manifest.states, found[1:], strict=True):
            if value.shape != self._states[state.name].shape:
                raise ExportError(
                    f"{self.path} gives {state.next} of shape {value.shape}, its metadata say "
                    f"{self._states[state.name].shape}; export the model again"
                )
            self._states[state.name] = value
        self.steps_done += 1
        logits: Float32 = found[0]
        return logits

    def sequence(self, x: Float32) -> Float32:
        """Run several steps from the present state and return the mean of their logits ``[B, num_classes]``.

        Args:
            x: ``[T, B, C, H, W]``; for a static model ``[B, C, H, W]``, shown for the file's ``timesteps``.
        """
        if self.manifest.static:
            frames: Any = [x] * self.manifest.timesteps
        else:
            if getattr(x, "ndim", 0) != 5 or len(x) == 0:
                raise UsageError(
                    f"a sequence of shape {np.shape(x)} does not fit; give frames [T, B, C, H, W] with T >= 1"
                )
            frames = x
        total: Any = None
        for frame in frames:
            logits = self.step(frame)
            total = logits if total is None else total + logits
        mean: Float32 = total / np.float32(len(frames))
        return mean

    def state_dict(self) -> dict[str, Float32]:
        """Return a snapshot of the streams: state name -> ``[B, ...]``; copies."""
        self._require_reset()
        return {name: value.copy() for name, value in self._states.items()}

    def load_state_dict(self, states: Mapping[str, Float32]) -> None:
        """Go on from a snapshot of `state_dict`; its batch becomes the runner's.

        Raises:
            UsageError: names, shapes or dtypes are not those of this file.
        """
        wanted = {state.name: state for state in self.manifest.states}
        if set(states) != set(wanted):
            odd = sorted(set(states) ^ set(wanted))[0]
            raise UsageError(
                f"the snapshot does not belong to {self.path}: state {odd!r} is not in both"
            )
        if not wanted:
            return
        batch = int(np.shape(next(iter(states.values())))[0])
        for name, entry in wanted.items():
            value = states[name]
            if value.dtype != np.float32 or value.shape != (batch, *entry.shape):
                raise UsageError(
                    f"snapshot state {name!r} is {value.dtype}{list(value.shape)}, {self.path} needs "
                    f"float32{[batch, *entry.shape]}"
                )
        self._states = {name: np.ascontiguousarray(states[name]).copy() for name in wanted}
        self._batch = batch

    def _require_reset(self) -> int:
        if self._batch is None:
            raise UsageError("the runner has no state yet; call reset(batch) before the first step")
        return self._batch

    def _check_frame(self, x: Float32) -> None:
        batch = self._require_reset()
        wanted = (batch, *self.manifest.in_shape)
        if getattr(x, "dtype", None) != np.float32:
            raise UsageError(
                f"a frame of type {getattr(x, 'dtype', type(x).__name__)} does not fit; give float32 (8-bit "
                f"frames times {self.manifest.input_scale:g})"
            )
        if x.shape != wanted:
            changed = x.ndim == 4 and x.shape[1:] == wanted[1:]
            todo = f"call reset({x.shape[0]}) first" if changed else "the batch is fixed by reset()"
            raise UsageError(f"a frame of shape {x.shape} does not fit {wanted}; {todo}")

    def _check_names(self) -> None:
        inputs = {one.name for one in self._session.get_inputs()}
        outputs = {one.name for one in self._session.get_outputs()}
        if inputs != {"x", *(s.name for s in self.manifest.states)} or outputs != set(
            self._outputs
        ):
            raise ExportError(
                f"{self.path} has other inputs or outputs than its metadata say; export the model again"
            )


def open_session(model: Path | bytes, threads: int = 1, optimize: bool = True) -> Any:
    """Return an onnxruntime session with the settings for streaming: no spinning, one operator at a time.

    Raises:
        UsageError: no file of that name.
        ExportError: onnxruntime cannot read it.
    """
    import onnxruntime as ort

    if isinstance(model, Path) and not model.is_file():
        raise UsageError(f"{model} does not exist; write it with: revedge export RUN --format onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        name = str(model) if isinstance(model, Path) else "the model"
        raise ExportError(
            f"{name} is damaged, or not an ONNX model: {_first_line(error)}"
        ) from None


def read_manifest(session: Any, source: str) -> Manifest:
    """Return the metadata of an open session.

    Raises:
        ExportError: none, damaged, of another schema, or not a step graph.
    """
    manifest = Manifest.from_strings(session.get_modelmeta().custom_metadata_map, source)
    if manifest.graph != "step":
        raise ExportError(f"{source} is a {manifest.graph!r} graph; the runner needs a step graph")
    return manifest


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
