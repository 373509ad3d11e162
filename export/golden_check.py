"""Does an exported file do on this machine what it did where it was exported? numpy and onnxruntime only.

A golden file (golden.py) holds frames, the trained network's states after each of the first steps, its logits, and for
each state how far rounding alone may move it. Two questions:

1. Steps, for files that show their states: from the network's states, one step at a time. A spike that differs moves
   its neuron's state by a whole threshold, so flips are counted without looking inside. Where a sample's step has no
   flip, every state and logit must lie within its bound. At most a quarter of the samples' steps may have one
   (seen on correct files: 1 in 40 at 370,000 neurons); a fault shows in nearly all of them.
2. The whole recording, free running: the decision must be the network's.

Files with exact numerics have bounds of 0 and no flips: every state and logit must be equal, bit for bit.
"""

import json
import operator
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from revedge.errors import ExportError, UsageError
from revedge.export.manifest import Manifest, require_version
from revedge.export.runner import CPU, StreamRunner

GOLDEN_VERSION = 1
FLIPPED_SHARE = 0.25  # of the samples' steps
_LARGEST_BYTES = 1 << 30  # of all arrays together
_TINY = float(np.finfo(np.float32).tiny)
Array = npt.NDArray[np.float32]


@dataclass(slots=True)
class GoldenReport:
    """What was found.

    Attributes:
        compared_values: states and logits, stepping from the network's states.
        compared_steps: samples times steps; 0 for files that show no states.
        flipped_steps: of these, with at least one spike that is not the network's.
        spike_flips: spikes that differ, stepping.
        largest_share_of_bound: largest difference in steps without flips, as a share of its bound.
        argmax_changed: decisions on the whole recordings that differ.
        max_logit_difference: of the mean logits of the whole recordings.
    """

    compared_values: int = 0
    compared_steps: int = 0
    flipped_steps: int = 0
    spike_flips: int = 0
    largest_share_of_bound: float = 0.0
    argmax_changed: int = 0
    max_logit_difference: float = 0.0


def check_golden(
    model: Path, golden: Path, threads: int = 1, *, provider: str = CPU
) -> GoldenReport:
    """Compare the file ``model`` with ``golden`` on this machine.

    Args:
        model, golden: of one export.
        threads: of onnxruntime.
        provider: its execution provider, e.g. "cuda".

    Raises:
        UsageError: one of them does not exist, or there is no such provider.
        ExportError: damaged, of another network, or the file does something else here.
    """
    runner = StreamRunner(model, threads=threads, provider=provider)
    content = _Content(golden, runner.manifest)
    report = GoldenReport()
    if runner.manifest.graph in ("step", "blocks"):
        _check_steps(runner, content, report)
    _check_recording(runner, content, report)
    return report


def _check_steps(runner: StreamRunner, content: "_Content", report: GoldenReport) -> None:
    states = runner.manifest.states
    runner.reset(content.batch)
    for step in range(content.state_steps):
        if step:
            runner.load_state_dict({s.name: content.states[s.name][step - 1] for s in states})
        logits = runner.step(content.frame(step))
        found = runner.state_dict()
        pairs = [("logits", logits, content.logits[step], content.bounds[0], np.inf)]
        for index, state in enumerate(states):
            expected, bound = content.states[state.name][step], content.bounds[index + 1]
            jump = content.jumps[index]
            pairs.append((state.path, found[state.name], expected, bound, float(jump)))
        _judge_step(step, pairs, report)
    allowed = 0.0 if runner.manifest.numerics == "exact" else FLIPPED_SHARE
    if report.flipped_steps > allowed * report.compared_steps:
        raise ExportError(
            f"{report.flipped_steps} of {report.compared_steps} steps have spikes that are not the trained network's; "
            "the runtime on this machine computes something else than the file says"
        )


def _judge_step(
    step: int, pairs: list[tuple[str, Array, Array, Any, float]], report: GoldenReport
) -> None:
    batch = len(pairs[0][1])
    flips = np.zeros(batch, np.int64)
    share, worst = np.zeros(batch), [""] * batch
    for name, found, expected, bound, jump in pairs:
        away = np.abs(found.astype(np.float64) - expected).reshape(batch, -1)
        report.compared_values += away.size
        if not np.all(np.isfinite(away)):
            raise ExportError(f"step {step}: {name} is not finite on this machine")
        if jump < 0:
            crossed = (found >= np.float32(-jump)) != (expected >= np.float32(-jump))
            flips += np.count_nonzero(crossed.reshape(batch, -1), axis=1)
        else:
            flips += np.count_nonzero(away > jump / 2, axis=1)
        for place, largest in enumerate(away.max(axis=1, initial=0.0) / max(float(bound), _TINY)):
            if largest > share[place]:
                share[place], worst[place] = largest, name
    report.compared_steps += batch
    report.flipped_steps += int(np.count_nonzero(flips))
    report.spike_flips += int(flips.sum())
    for place in np.flatnonzero(flips == 0).tolist():
        report.largest_share_of_bound = max(report.largest_share_of_bound, float(share[place]))
        if share[place] > 1:
            raise ExportError(
                f"step {step}: {worst[place]} differs {share[place]:.3g} times as much from the trained network as "
                "rounding explains; the runtime on this machine computes something else than the file says"
            )


def _check_recording(runner: StreamRunner, content: "_Content", report: GoldenReport) -> None:
    runner.reset(content.batch)
    mean = runner.sequence(content.x)
    expected = content.logits.sum(0) / np.float32(len(content.logits))
    report.max_logit_difference = float(np.abs(mean - expected).max(initial=0.0))
    report.argmax_changed = int(np.count_nonzero(mean.argmax(1) != expected.argmax(1)))
    unequal = runner.manifest.numerics == "exact" and report.max_logit_difference > 0
    if report.argmax_changed or unequal or not np.all(np.isfinite(mean)):
        raise ExportError(
            f"{report.argmax_changed} of {content.batch} decisions are not the trained network's (largest logit "
            f"difference {report.max_logit_difference:.3g})"
        )


class _Content:
    """A golden file, checked against the metadata of the model before anything large is read."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        if not path.is_file():
            raise UsageError(f"{path} does not exist; revedge export writes it as golden.npz")
        try:
            self._read(path, manifest)
        except ExportError:
            raise
        except (
            Exception
        ):  # zipfile, zlib, json and numpy have many ways to say that bytes make no sense
            raise ExportError(
                f"{path} is damaged, or not a golden file of revedge; export the model again"
            ) from None

    def _read(self, path: Path, manifest: Manifest) -> None:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _LARGEST_BYTES:
                raise ValueError("too large")
            about = json.loads(bytes(_member(archive, "about", None)))
            require_version("golden version", about["version"], GOLDEN_VERSION, str(path))
            _require_of_model(path, about, manifest)
            steps, self.batch, self.state_steps = (
                operator.index(about[name]) for name in ("steps", "batch", "state_steps")
            )
            if not 1 <= self.state_steps <= steps or not self.batch >= 1:
                raise ValueError("steps")
            frames = (self.batch, *manifest.in_shape)
            self.static = manifest.static
            self.x = _member(archive, "x", frames if self.static else (steps, *frames))
            self.logits = _member(archive, "logits", (steps, self.batch, manifest.num_classes))
            self.bounds = _member(archive, "bounds", (len(manifest.states) + 1,))
            self.jumps = _member(archive, "jumps", (len(manifest.states),))
            shown = manifest.states if manifest.graph in ("step", "blocks") else ()
            self.states = {
                s.name: _member(archive, s.name, (self.state_steps, self.batch, *s.shape))
                for s in shown
            }
        every = (self.x, self.logits, self.bounds, self.jumps, *self.states.values())
        if not all(np.all(np.isfinite(array)) for array in every):
            raise ValueError("not finite")
        if not np.all(self.bounds >= 0) or not np.all(np.abs(self.jumps) > 0):
            raise ValueError("bounds")

    def frame(self, step: int) -> Array:
        """Return ``x`` of one step."""
        frame: Array = self.x if self.static else self.x[step]
        return frame


def _require_of_model(path: Path, about: dict[str, Any], manifest: Manifest) -> None:
    """Raise for a sound golden file of another export than the model's; older files do not say their numerics."""
    if about["network"] != manifest.network:
        raise ExportError(f"{path} belongs to another network; use the one exported with the model")
    for name, wanted, found in (
        ("numerics", manifest.numerics, about.get("numerics", manifest.numerics)),
        ("batch", manifest.batch or about["batch"], about["batch"]),
        ("steps", manifest.steps or about["steps"], about["steps"]),
    ):
        if wanted != found:
            raise ExportError(
                f"{path} is of {name} {repr(found)[:20]}, the model of {name} {wanted}; use the one exported with the "
                "model"
            )


def _member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...] | None) -> Any:
    """Read an array of the archive after its header has said that it has the expected shape and type."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(name)
        found, _, dtype = np.lib.format.read_array_header_1_0(stream)
    wanted = np.dtype(np.uint8 if shape is None else np.float32)
    if dtype != wanted or (found != shape if shape is not None else len(found) != 1):
        raise ValueError(name)
    if int(np.prod(found, dtype=np.float64)) * wanted.itemsize > info.file_size:
        raise ValueError(name)
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
