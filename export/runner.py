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

import numpy as np
import numpy.typing as npt

from revedge.errors import ExportError, UsageError
from revedge.export.declared import read_manifest as read_manifest
from revedge.export.declared import require_declared
from revedge.export.session import CPU as CPU
from revedge.export.session import first_line
from revedge.export.session import open_session as open_session
from revedge.export.session import provider_named as provider_named

Float32 = npt.NDArray[np.float32]
_STATE_LIMIT_BYTES = 1 << 34
_MOST_THREADS = 256  # more would be minutes of starting them


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
        if not 1 <= threads <= _MOST_THREADS:
            raise UsageError(
                f"threads={threads} is not a number of threads; use 1 to {_MOST_THREADS}"
            )
        self.path = Path(path)
        self._session = open_session(self.path, threads, low_memory=low_memory, provider=provider)
        self.manifest = read_manifest(self._session, str(path))
        self._stateful = self.manifest.graph in ("step", "blocks")
        self._carried = self.manifest.states if self._stateful else ()
        results = [state.next for state in self._carried] if self._stateful else ["mean_logits"]
        self._outputs = ["logits", *results]
        require_declared(self._session, self.manifest, str(path))
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
            raise ExportError(f"{self.path} does not run: {first_line(error)}") from None
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
