"""Run an exported ONNX file as a stream. Needs numpy and onnxruntime, and nothing else: no torch.

    runner = StreamRunner("model.onnx")
    runner.reset(batch=1)
    for frame in camera:                  # float32 [1, C, H, W]
        logits = runner.step(frame)

The file is stateless; the runner carries each neuron's state from one step to the next and never resets by itself.
Files of whole sequences (graphs blocks, scan and unrolled) run through the same calls, as far as they allow them.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from revedge.errors import ExportError, UsageError
from revedge.export.manifest import Manifest
from revedge.export.onnx_bytes import metadata_value, outline, require_complete, require_onnx

Float32 = npt.NDArray[np.float32]
_PROVIDER = "ExecutionProvider"
CPU = f"CPU{_PROVIDER}"
_GRAPHS = ("step", "blocks", "scan", "unrolled")
_STATE_LIMIT_BYTES = 1 << 34
_FOLDER = "session.model_external_initializers_file_folder_path"
_FOLDER_FROM = (1, 22)  # version of onnxruntime that knows it


class StreamRunner:
    """The state of one or several streams (a batch) and the file that moves it on.

    Args:
        path: an ONNX file of `revedge export`.
        threads: of onnxruntime. 1 is fastest for small nets, and keeps a busy board responsive.
        low_memory: convolutions in the plain layout, without a second copy of their weights; a quarter slower.
        provider: execution provider of onnxruntime, e.g. "cuda"; what it cannot do runs on the CPU.

    Attributes:
        manifest: what the file says about itself (`revedge.export.manifest.Manifest`).
        steps_done: steps since the last `reset`.

    Memory: the weights, one batch of states twice, and what onnxruntime needs for one step.

    Raises:
        UsageError: no file of that name, one of another format, or no such provider.
        ExportError: damaged, or not of revedge, or the provider cannot run it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int = 1,
        *,
        low_memory: bool = False,
        provider: str = CPU,
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads={threads} is not a number of threads; use 1 or more")
        self.path = Path(path)
        self._session = open_session(self.path, threads, low_memory=low_memory, provider=provider)
        self.manifest = read_manifest(self._session, str(path))
        self._stateful = self.manifest.graph in ("step", "blocks")
        self._carried = self.manifest.states if self._stateful else ()
        results = [state.next for state in self._carried] if self._stateful else ["mean_logits"]
        self._outputs = ["logits", *results]
        self._check_names()
        self._states: dict[str, Float32] = {}
        self._batch: int | None = None
        self.steps_done = 0

    def reset(self, batch: int = 1) -> None:
        """Put ``batch`` streams at rest; call it before the first step and between recordings.

        Raises:
            UsageError: ``batch`` is below 1, not the one of a file with a fixed batch, or its states need more than
                16 GiB.
        """
        if batch < 1:
            raise UsageError(f"batch={batch} is not a number of streams; use 1 or more")
        fixed = self.manifest.batch
        if fixed is not None and batch != fixed:
            raise UsageError(
                f"batch={batch} does not fit {self.path}, which was exported for {fixed}; export it with "
                f"--batch {batch} or --batch dynamic"
            )
        values = sum(int(np.prod(state.shape, dtype=np.float64)) for state in self.manifest.states)
        if 4 * batch * values > _STATE_LIMIT_BYTES:
            raise UsageError(f"batch={batch} needs {4 * batch * values} bytes of state; use fewer")
        self._states = {
            state.name: np.full((batch, *state.shape), state.init, np.float32)
            for state in self._carried
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
            UsageError: `reset` was not called, ``x`` is of another batch, shape or dtype, or the file runs whole
                recordings only.
        """
        self._check_frames(x, 4)
        if not self._stateful:
            raise UsageError(
                f"{self.path} runs whole recordings only ({self.manifest.graph} graph); call sequence, or use "
                "model.onnx"
            )
        if self.manifest.graph == "blocks":
            logits: Float32 = self._run(x[None])[0][0]
            return logits
        return self._run(x)[0]

    def sequence(self, x: Float32) -> Float32:
        """Run several steps from the present state and return the mean of their logits ``[B, num_classes]``.

        Args:
            x: ``[T, B, C, H, W]``; for a static model ``[B, C, H, W]``, shown for the file's ``timesteps``.

        Raises:
            UsageError: as `step`; or the file always begins at rest (graphs scan and unrolled) and `reset` was not
                called in between, or it has another number of steps.
        """
        manifest = self.manifest
        self._check_frames(x, 4 if manifest.static else 5)
        steps = manifest.timesteps if manifest.static else len(x)
        if not self._stateful:
            return self._whole(x, steps)
        if manifest.graph == "blocks":
            each = list(self._run(x, steps)[0])
        else:
            each = [self._run(frame)[0] for frame in ([x] * steps if manifest.static else x)]
        total = each[0]
        for logits in each[1:]:
            total = total + logits
        mean: Float32 = total / np.float32(steps)
        return mean

    def _whole(self, x: Float32, steps: int) -> Float32:
        if self.steps_done:
            raise UsageError(
                f"{self.path} always begins at rest ({self.manifest.graph} graph); call reset(batch) before each "
                "recording, or export onnx-blocks"
            )
        if self.manifest.steps not in (None, steps):
            raise UsageError(
                f"a sequence of {steps} steps does not fit {self.path}, which has {self.manifest.steps}"
            )
        mean: Float32 = self._run(x, steps)[1]
        return mean

    def _run(self, x: Float32, steps: int = 1) -> list[Float32]:
        """Run the file once; keep the new states, return what it gave."""
        try:
            found: list[Float32] = self._session.run(
                self._outputs, {"x": np.ascontiguousarray(x), **self._states}
            )
        except Exception as error:  # onnxruntime's errors have no common base
            raise ExportError(f"{self.path} does not run: {_first_line(error)}") from None
        for state, value in zip(self._carried, found[1:], strict=False):
            if value.shape != self._states[state.name].shape:
                raise ExportError(
                    f"{self.path} gives {state.next} of shape {value.shape}, its metadata say "
                    f"{self._states[state.name].shape}; export the model again"
                )
            self._states[state.name] = value
        self.steps_done += steps
        return found

    def state_dict(self) -> dict[str, Float32]:
        """Return a snapshot of the streams: state name -> ``[B, ...]``; copies.

        Raises:
            UsageError: `reset` was not called, or the file keeps its states inside (graphs scan and unrolled).
        """
        self._require_reset()
        if not self._stateful:
            raise UsageError(
                f"{self.path} shows no states ({self.manifest.graph} graph); use model.onnx"
            )
        return {name: value.copy() for name, value in self._states.items()}

    def load_state_dict(self, states: Mapping[str, Float32]) -> None:
        """Go on from a snapshot of `state_dict`; its batch becomes the runner's.

        Raises:
            UsageError: names, shapes or dtypes are not those of this file.
        """
        wanted = {state.name: state for state in self._carried}
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

    def _check_frames(self, x: Float32, dims: int) -> None:
        batch = self._require_reset()
        scale = self.manifest.input_scale
        if getattr(x, "dtype", None) != np.float32:
            raise UsageError(
                f"x of type {getattr(x, 'dtype', type(x).__name__)} does not fit; give float32 (8-bit "
                f"frames times {scale:g})"
            )
        layout = {4: "[B, C, H, W]", 5: "[T, B, C, H, W] with T >= 1"}[dims]
        shape = self.manifest.in_shape
        if x.ndim != dims or len(x) == 0 or x.shape[-3:] != shape:
            raise UsageError(f"x of shape {x.shape} does not fit {layout} with (C, H, W) = {shape}")
        if x.shape[-4] != batch:
            raise UsageError(
                f"x of batch {x.shape[-4]} does not fit {batch}; call reset({x.shape[-4]}) first"
            )

    def _check_names(self) -> None:
        inputs = {one.name for one in self._session.get_inputs()}
        outputs = {one.name for one in self._session.get_outputs()}
        if inputs != {"x", *(s.name for s in self._carried)} or outputs != set(self._outputs):
            raise ExportError(
                f"{self.path} has other inputs or outputs than its metadata say; export the model again"
            )
        shapes = {state.name: state.shape for state in self._carried} | {
            "x": self.manifest.in_shape
        }
        for one in self._session.get_inputs():
            found, told = tuple(one.shape[-len(shapes[one.name]) :]), shapes[one.name]
            if found != told:
                raise ExportError(
                    f"{self.path} takes {one.name} of shape {found} per stream, its metadata say {told}; export the "
                    "model again"
                )


def open_session(
    model: Path | bytes,
    threads: int = 1,
    *,
    optimize: bool = True,
    low_memory: bool = False,
    provider: str = CPU,
) -> Any:
    """Return an onnxruntime session with the settings for streaming: no spinning, one operator at a time.

    Raises:
        UsageError: no file of that name, a file of another format, or a provider that onnxruntime does not have here.
        ExportError: it keeps data elsewhere, or onnxruntime cannot read it.
    """
    import onnxruntime as ort

    if isinstance(model, Path):
        if not model.is_file():
            raise UsageError(
                f"{model} does not exist; write it with: revedge export RUN --format onnx"
            )
        require_onnx(model)
        require_complete(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    # A plan of all tensors in one block takes 3 MB more. A step gains no time by it, a Scan of them a fiftieth.
    options.enable_mem_pattern = (
        metadata_value(model, "graph") not in ("", "step") and not low_memory
    )
    # Operators as they stand in the file: a state is made while its membrane is still in the cache, not at the end.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Weights of 8 bits are multiplied out once. Otherwise they are in every step, and convolutions, whose weights are
    # then no constants, run in the plain layout: a third slower.
    options.add_session_config_entry("session.disable_quant_qdq", "0" if low_memory else "1")
    if low_memory:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    provider = provider_named(provider)
    if isinstance(model, bytes):
        return _session(model, options, "the model", provider)
    if _version(ort.__version__) < _FOLDER_FROM:
        return _session(str(model), options, str(model), provider)
    # Weights stay in the file, which is mapped while they are needed: otherwise onnxruntime holds them twice while it
    # loads, as they are and in the layout of its convolutions.
    place = model.resolve()
    options.add_session_config_entry(_FOLDER, str(place.parent))
    before = _identity(place)
    session = _session(outline(place), options, str(model), provider)
    if _identity(place) != before:
        raise ExportError(f"{model} was replaced while it was opened; open it again")
    return session


def provider_named(name: str) -> str:
    """Return onnxruntime's name of an execution provider; ``cuda`` and ``CUDAExecutionProvider`` are the same.

    Raises:
        UsageError: this onnxruntime has none of that name; names those that it has.
    """
    import onnxruntime as ort

    found: list[str] = ort.get_available_providers()
    for one in found:
        if name.lower() in (one.lower(), one.removesuffix(_PROVIDER).lower()):
            return one
    raise UsageError(
        f"provider {name!r} is not in this onnxruntime; it has {', '.join(found)} (GPUs need another wheel of it)"
    )


def _session(source: str | bytes, options: Any, name: str, provider: str) -> Any:
    import onnxruntime as ort

    kind = type("Session", (_NoFallback, ort.InferenceSession), {})
    try:
        session = kind(source, options, providers=list(dict.fromkeys([provider, CPU])))
    except Exception as error:  # onnxruntime's errors have no common base
        raise ExportError(
            f"{name} is damaged, or not an ONNX model: {_first_line(error)}"
            if provider == CPU
            else f"{name} does not load on {provider}: {_first_line(error)}"
        ) from None
    if (
        session.get_providers()[0] != provider
    ):  # a library of the provider is missing: onnxruntime goes on without
        raise ExportError(f"{provider} cannot be used on this machine; ask for {CPU}")
    return session


class _NoFallback:
    """Before the session of onnxruntime: no second try after an error, of loading or of running.

    It would print to standard output, where answers are, and go on with another provider than was asked for. Only
    the newest versions have an argument for it, which older ones ignore.
    """

    @property
    def _enable_fallback(self) -> bool:
        return False

    @_enable_fallback.setter
    def _enable_fallback(self, value: bool) -> None:
        del value


def _identity(model: Path) -> tuple[int, ...]:
    told = model.stat()
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def read_manifest(session: Any, source: str) -> Manifest:
    """Return the metadata of an open session.

    Raises:
        ExportError: none, damaged, of another schema, or a graph that onnxruntime cannot step through.
    """
    manifest = Manifest.from_strings(session.get_modelmeta().custom_metadata_map, source)
    if manifest.graph not in _GRAPHS:
        raise ExportError(
            f"{source} is a {manifest.graph!r} graph; the runner knows {', '.join(_GRAPHS)}"
        )
    return manifest


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
