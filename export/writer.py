"""Write a network to files and hold every file against it: the whole of `revedge export`, as one function."""

import dataclasses
import difflib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from revedge.engine.unit import GRID_BITS
from revedge.errors import ExportError, UsageError
from revedge.export.inference import InferenceNet, inference_form
from revedge.export.manifest import Manifest, StateEntry
from revedge.export.onnx_graph import DEFAULT_OPSET, check_opset, write_onnx
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.parity import (
    BATCHES,
    STEPS,
    ParityReport,
    compare_predictions,
    compare_steps,
    repeat_frames,
)
from revedge.export.probes import Array, FileProbe, TorchScriptProbe, TrainedProbe
from revedge.export.runner import StreamRunner
from revedge.export.torchscript import check_python, read_torchscript, write_torchscript
from revedge.models import SpikingNet

FORMATS = ("torchscript", "onnx")
REPORT_FILE = "model.export.json"
_FILES = {"torchscript": ("model.step.pt", "model.stream.pt"), "onnx": ("model.onnx",)}
_BATCH, _BATCH_PIXELS = (
    32,
    1 << 20,
)  # of the test split: at most so many samples, and time steps * height * width
_TELL_EVERY_S = 5.0


class Frames(Protocol):
    """The test data; `revedge.data.FrameCache` is one."""

    scale: float
    class_names: tuple[str, ...]
    test_indices: npt.NDArray[np.int64]

    def batch(
        self, indices: npt.ArrayLike, /
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return uint8 ``[T, B, C, H, W]`` (or ``[B, C, H, W]``) and labels."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class ExportedFile:
    """One format: its files, and what the comparison found."""

    format: str
    paths: tuple[Path, ...]
    parity: ParityReport


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the formats named in ``"torchscript,onnx"``.

    Raises:
        UsageError: one is not known; the closest is named.
    """
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in FORMATS:
            close = difflib.get_close_matches(name, [*FORMATS, "ts", "jit"], n=1, cutoff=0.4)
            hint = (
                {"ts": "torchscript", "jit": "torchscript"}.get(close[0], close[0]) if close else ""
            )
            raise UsageError(
                f"format {name!r} is not known; "
                + (f"did you mean {hint}?" if hint else f"choose from {', '.join(FORMATS)}")
            )
    if not names:
        raise UsageError(f"no format was named; choose from {', '.join(FORMATS)}")
    return names


def export_network(
    net: SpikingNet,
    frames: Frames,
    out: Path,
    formats: Sequence[str] = FORMATS,
    *,
    opset: int = DEFAULT_OPSET,
    data_name: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> list[ExportedFile]:
    """Write ``net`` to ``out`` in every format and compare each file with it.

    Args:
        net: a trained network; not changed.
        frames: its data set; the comparison uses the test split.
        out: folder; made if missing. Files: model.onnx, model.step.pt, model.stream.pt, model.export.json.
        formats: of `FORMATS`.
        opset: of the ONNX file.
        data_name: of the data set, for the metadata.
        tell: gets a line of progress from time to time.

    Time: seconds, plus two passes over the test split per format.

    Raises:
        UsageError: an unknown format or opset, or a folder that cannot be made.
        ExportError: a file differs from the network; it is left with the suffix ``.rejected``.
    """
    parse_formats(",".join(formats))
    if "onnx" in formats:
        check_opset(opset)
    if "torchscript" in formats:
        check_python()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"-o {out} cannot be made ({error.strerror}); name a folder that you can write"
        ) from None
    form = inference_form(net)
    trained = TrainedProbe(net)
    done: list[ExportedFile] = []
    failures: list[ExportError] = []
    for name in formats:
        paths = tuple(out / file for file in _FILES[name])
        manifest = manifest_of(net, frames, data_name, opset if name == "onnx" else None)
        tell(f"writing {', '.join(path.name for path in paths)}")
        parity = ParityReport(steps=max(STEPS, net.timesteps), batches=BATCHES)
        try:
            _write(name, form, manifest, paths)
            tell(
                f"{name}: comparing {parity.steps} steps, then {len(frames.test_indices)} test samples"
            )
            _compare(_probe(name, paths, manifest, net), trained, frames, parity)
            compare_predictions(_predictions(name, paths, trained, frames, tell), parity)
            done.append(ExportedFile(name, paths, parity))
        except ExportError as error:
            failures.append(_reject(error, paths))
    _write_report(out / REPORT_FILE, done, failures)
    if failures:
        raise failures[0]
    return done


def manifest_of(net: SpikingNet, frames: Frames, data_name: str, opset: int | None) -> Manifest:
    """Return the metadata of a step graph of ``net``."""
    states = tuple(
        StateEntry(
            name=f"state_{i}",
            next=f"next_state_{i}",
            shape=tuple(spec.shape),
            init=spec.init,
            path=spec.name,
        )
        for i, spec in enumerate(net.state_spec())
    )
    packages = {"revedge": "revedge", "torch": "torch"} | ({"onnx": "onnx"} if opset else {})
    return Manifest(
        graph="step",
        in_shape=tuple(net.in_shape),
        input_scale=float(frames.scale),
        static=net.static,
        timesteps=net.timesteps,
        num_classes=net.num_classes,
        class_names=tuple(frames.class_names),
        states=states,
        grid_bits=GRID_BITS,
        model=json.loads(json.dumps(net.config)),
        versions={key: _version(package) for key, package in packages.items()},
        data=data_name,
        opset=opset,
    )


def _write(name: str, form: InferenceNet, manifest: Manifest, paths: tuple[Path, ...]) -> None:
    if name == "onnx":
        assert manifest.opset is not None
        write_onnx(form, manifest, paths[0], manifest.opset)
    else:
        write_torchscript(form, manifest, paths[0], paths[1])


def _probe(name: str, paths: tuple[Path, ...], manifest: Manifest, net: SpikingNet) -> FileProbe:
    return OnnxProbe(paths[0], manifest, net) if name == "onnx" else TorchScriptProbe(paths[0], net)


def _compare(probe: FileProbe, trained: TrainedProbe, frames: Frames, parity: ParityReport) -> None:
    for batch in parity.batches:
        raw, _ = frames.batch(frames.test_indices[:batch])
        x = repeat_frames(_scaled(raw, frames.scale), parity.steps, trained.net.static)
        compare_steps(trained, probe, x, parity)


def _predictions(
    name: str,
    paths: tuple[Path, ...],
    trained: TrainedProbe,
    frames: Frames,
    tell: Callable[[str], None],
) -> Iterator[tuple[npt.NDArray[np.int64], Array, Array]]:
    """Labels, mean logits of the network's own forward, and of the file, over the test split."""
    net = trained.net
    answer = _onnx_answer(paths[0]) if name == "onnx" else _torchscript_answer(paths[1])
    pixels = net.timesteps * net.in_shape[1] * net.in_shape[2]
    size = max(1, min(_BATCH, _BATCH_PIXELS // pixels))
    told, total = time.monotonic(), len(frames.test_indices)
    for begin in range(0, total, size):
        raw, labels = frames.batch(frames.test_indices[begin : begin + size])
        x = _scaled(raw, frames.scale)
        with torch.no_grad():
            expected: Array = net(torch.from_numpy(x)).numpy()
        yield labels, expected, answer(x, len(labels))
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            tell(f"{name}: {begin + len(labels)} of {total} test samples compared")


def _onnx_answer(path: Path) -> Callable[[Array, int], Array]:
    runner = StreamRunner(path)

    def answer(x: Array, batch: int) -> Array:
        runner.reset(batch)
        return runner.sequence(x)

    return answer


def _torchscript_answer(path: Path) -> Callable[[Array, int], Array]:
    module: Any = read_torchscript(path)[0]

    def answer(x: Array, batch: int) -> Array:
        with torch.no_grad():
            module.reset(batch)
            logits: Array = module.sequence(torch.from_numpy(x)).numpy()
        return logits

    return answer


def _scaled(raw: npt.NDArray[np.uint8], scale: float) -> Array:
    return raw.astype(np.float32) * np.float32(scale)


def _reject(error: ExportError, paths: tuple[Path, ...]) -> ExportError:
    kept = []
    for path in paths:
        if path.exists():
            kept.append(path.rename(path.with_name(path.name + ".rejected")).name)
    return ExportError(f"{error}; kept as {', '.join(kept)}" if kept else str(error))


def _write_report(path: Path, done: list[ExportedFile], failures: list[ExportError]) -> None:
    report = {
        "files": {file.format: [one.name for one in file.paths] for file in done},
        "parity": {file.format: dataclasses.asdict(file.parity) for file in done},
        "errors": [str(error) for error in failures],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
