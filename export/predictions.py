"""Answers on the test split, batch by batch: the network's own multi-step forward, and the file as a sequence."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from revedge.export.manifest import Manifest
from revedge.export.nir_probe import NirProbe
from revedge.export.probes import Array, TrainedProbe
from revedge.export.pt2 import Pt2Probe
from revedge.export.recordings import fill_batch, repeat_frames
from revedge.export.runner import StreamRunner
from revedge.export.torchscript import read_torchscript

# Of the test split: at most so many samples, and time steps * height * width.
_BATCH, _BATCH_PIXELS = 32, 1 << 20
_TELL_EVERY_S = 5.0
_Answer = Callable[[Array], Array]  # frames of a batch -> mean logits


class Frames(Protocol):
    """The test data; `revedge.data.FrameCache` is one."""

    scale: float
    class_names: tuple[str, ...]

    @property
    def test_indices(self) -> npt.NDArray[np.int64]:
        """Positions of the test samples."""
        ...

    def batch(
        self, indices: npt.ArrayLike, /
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return uint8 ``[T, B, C, H, W]`` (or ``[B, C, H, W]``) and labels."""
        ...


def sample(frames: Frames, batch: int, steps: int, *, static: bool) -> Array:
    """The first ``batch`` samples of the test split, ``[steps, B, ...]``; again from the first if fewer."""
    raw, _ = frames.batch(np.resize(frames.test_indices, batch))
    return repeat_frames(scaled(raw, frames.scale), steps, static)


def scaled(raw: npt.NDArray[np.uint8], scale: float) -> Array:
    """Frames as the network takes them."""
    return raw.astype(np.float32) * np.float32(scale)


def predictions(
    path: Path,
    manifest: Manifest,
    trained: TrainedProbe,
    frames: Frames,
    tell: Callable[[str], None],
) -> Iterator[tuple[npt.NDArray[np.int64], Array, Array]]:
    """Labels, mean logits of the network's own forward (`TrainedProbe.answer`), and of the file, over the test split.

    Args:
        path: an ONNX file, or a TorchScript stream.
        manifest: of the file. A file of a fixed number of steps gets recordings of that length.
        trained: the trained network.
        frames: its data.
        tell: gets a line of progress from time to time.
    """
    net = trained.net
    answers = {".onnx": _onnx_answer, ".pt": _torchscript_answer}
    answer = answers[path.suffix](path) if path.suffix in answers else _step_answer(path, trained)
    pixels = net.timesteps * net.in_shape[1] * net.in_shape[2]
    size = manifest.batch or max(1, min(_BATCH, _BATCH_PIXELS // pixels))
    told, total = time.monotonic(), len(frames.test_indices)
    for begin in range(0, total, size):
        raw, labels = frames.batch(frames.test_indices[begin : begin + size])
        x = scaled(raw, frames.scale)
        if manifest.steps is not None and not net.static:
            x = repeat_frames(x, manifest.steps, False)
        found = answer(fill_batch(x, manifest.batch))[: len(labels)]
        yield labels, trained.answer(x), found
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            tell(f"{path.name}: {begin + len(labels)} of {total} test samples compared")


def _onnx_answer(path: Path) -> _Answer:
    runner = StreamRunner(path)

    def answer(x: Array) -> Array:
        runner.reset(x.shape[-4])
        return runner.sequence(x)

    return answer


def _step_answer(path: Path, trained: TrainedProbe) -> _Answer:
    """Of a file that is a step and nothing else."""
    probe = Pt2Probe(path, trained) if path.suffix == ".pt2" else NirProbe(path, trained)

    def answer(x: Array) -> Array:
        frames: Any = [x] * trained.net.timesteps if trained.net.static else x
        states = trained.rest(x.shape[-4])
        total: Any = None
        for frame in frames:
            logits, states = probe.shipped(np.ascontiguousarray(frame), states)
            total = logits if total is None else total + logits
        mean: Array = total / np.float32(len(frames))
        return mean

    return answer


def _torchscript_answer(path: Path) -> _Answer:
    module: Any = read_torchscript(path)[0]

    def answer(x: Array) -> Array:
        with torch.no_grad():
            module.reset(x.shape[-4])
            logits: Array = module.sequence(torch.from_numpy(x)).numpy()
        return logits

    return answer
