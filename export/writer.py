"""Write a network to files and hold every file against it: the whole of `revedge export`, as one function."""

from collections.abc import Callable, Sequence
from pathlib import Path

from revedge.errors import ExportError, UsageError
from revedge.export.described import exact_manifest as exact_manifest
from revedge.export.described import manifest_of as manifest_of
from revedge.export.exact_check import (
    ExactProbe,
    ExactTorchScriptProbe,
    compare_exactly,
    demand_equal_answers,
)
from revedge.export.exact_form import exact_form
from revedge.export.formats import (
    DEFAULT_FORMATS,
    FILES,
    UNROUNDED,
    Choices,
    check_numerics,
)
from revedge.export.golden import GOLDEN_FILE, network_sha256, write_golden
from revedge.export.golden_check import check_golden
from revedge.export.inference import InferenceNet, inference_form
from revedge.export.manifest import Manifest
from revedge.export.measure import MEASURED, measure
from revedge.export.nir_graph import write_nir
from revedge.export.nir_probe import NirProbe
from revedge.export.onnx_file import check_onnx, write_onnx
from revedge.export.onnx_probe import OnnxProbe
from revedge.export.outcome import REPORT_FILE, identity, reject, write_report
from revedge.export.outcome import ExportedFile as ExportedFile
from revedge.export.outcome import RejectedError as RejectedError
from revedge.export.parity import (
    BATCHES,
    SHORT,
    STEPS,
    ParityReport,
    check_forced_flips,
    compare_predictions,
    compare_steps,
)
from revedge.export.predictions import Frames, predictions, sample
from revedge.export.probes import FileProbe, TorchScriptProbe, TrainedProbe
from revedge.export.pt2 import Pt2Probe, write_pt2
from revedge.export.sequence_check import compare_with_step
from revedge.export.torchscript import check_python, write_torchscript
from revedge.models import SpikingNet


def export_network(
    net: SpikingNet,
    frames: Frames,
    out: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    choices: Choices | None = None,
    numerics: str = "float",
    data_name: str = "",
    measured: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> list[ExportedFile]:
    """Write ``net`` to ``out`` in every format and compare each file with it.

    Args:
        net: a trained network; not changed.
        frames: its data set; the comparison uses the test split.
        out: folder; made if missing. Files: see `revedge.export.formats.FILES`, golden.npz and
            model.export.json.
        formats: of `revedge.export.formats.FORMATS`.
        choices: opset, batch, target and so on, from `revedge.export.formats.choices`.
        numerics: "float", or "exact": integer sums, and equality of every bit instead of bounds.
        data_name: of the data set, for the metadata.
        measured: also measure time and memory of each file, in a process of its own.
        tell: gets a line of progress from time to time.

    Time: seconds, plus two passes over the test split per format.

    Raises:
        UsageError: an unknown format, choices that do not fit the network, or a folder that cannot be made.
        RejectedError: formats cannot be written, or a file differs from the network; it is left with the suffix
            ``.rejected``. The other formats are done, and in the error.
    """
    chosen = choices or Choices()
    check_numerics(formats, numerics)
    manifests = {name: manifest_of(net, frames, data_name, name, chosen) for name in formats}
    if "torchscript" in formats:
        check_python()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"-o {out} cannot be made ({error.strerror}); name a folder that you can write"
        ) from None
    trained: TrainedProbe
    if numerics == "exact":
        exact = exact_form(net, frames.scale)
        form, trained = exact.net, ExactProbe(net, frames.scale)
        manifests = {
            name: exact_manifest(each, exact.certificate) for name, each in manifests.items()
        }
    else:
        form, trained = inference_form(net), TrainedProbe(net)
    golden = out / GOLDEN_FILE
    write_golden(
        golden,
        trained,
        frames,
        network_sha256(net),
        batch=next((m.batch for m in manifests.values() if m.batch), None),
        steps=next((m.steps for m in manifests.values() if m.steps), net.timesteps),
        exact=numerics == "exact",
    )
    done: list[ExportedFile] = []
    failures: list[ExportError] = []
    for name, manifest in manifests.items():
        paths = tuple(out / file for file in FILES[name])
        before = [identity(path) for path in paths]
        tell(f"writing {', '.join(path.name for path in paths)}")
        parity = ParityReport(
            steps=max(STEPS, net.timesteps),
            batches=BATCHES if manifest.batch is None else (manifest.batch,),
            rounds=name not in UNROUNDED,
        )
        try:
            _write_and_compare(form, trained, frames, manifest, paths, parity, tell)
            file = ExportedFile(name, paths, manifest, parity)
            if manifest.opset is not None:
                file.golden = check_golden(paths[0], golden)
            if measured:
                tell(f"measuring {', '.join(path.name for path in paths)}")
                file.measured = {
                    path.name: measure(path, manifest.batch or 1)
                    for path in paths
                    if path.suffix in MEASURED
                }
            done.append(file)
        except ExportError as error:
            written = [p for p, was in zip(paths, before, strict=True) if identity(p) != was]
            failures.append(reject(error, written))
    write_report(out / REPORT_FILE, done, failures)
    if failures:
        raise RejectedError(failures, done)
    return done


def _write_and_compare(
    form: InferenceNet,
    trained: TrainedProbe,
    frames: Frames,
    manifest: Manifest,
    paths: tuple[Path, ...],
    parity: ParityReport,
    tell: Callable[[str], None],
) -> None:
    static = trained.net.static
    probe: FileProbe
    if paths[0].suffix == ".pt2":
        write_pt2(form, manifest, paths[0])
        probe = Pt2Probe(paths[0], trained)
    elif paths[0].suffix == ".nir":
        write_nir(trained.net, paths[0])
        probe = NirProbe(paths[0], trained)
    elif manifest.opset is None:
        write_torchscript(form, manifest, paths[0], paths[1])
        probe = (
            ExactTorchScriptProbe(paths[0], trained.net, trained.input_scale)
            if isinstance(trained, ExactProbe)
            else TorchScriptProbe(paths[0], trained.net)
        )
    else:
        write_onnx(form, manifest, paths[0])
        model = check_onnx(paths[0], manifest)
        probe = OnnxProbe(model, manifest, trained.net)
        if manifest.graph != "step":
            lengths = (SHORT, parity.steps) if manifest.steps is None else (manifest.steps,)
            recordings = [
                sample(frames, batch, steps, static=static)
                for batch in parity.batches
                for steps in lengths
            ]
            compare_with_step(model, manifest, [x[0] if static else x for x in recordings], parity)
    tell(
        f"{paths[0].name}: comparing {parity.steps} steps, then {len(frames.test_indices)} test samples"
    )
    for batch in parity.batches:
        x = sample(frames, batch, parity.steps, static=static)
        if isinstance(trained, ExactProbe):
            compare_exactly(trained, probe, x, parity)
        else:
            compare_steps(trained, probe, x, parity)
    check_forced_flips(parity)
    compare_predictions(predictions(paths[-1], manifest, trained, frames, tell), parity)
    if isinstance(trained, ExactProbe):
        demand_equal_answers(parity)
