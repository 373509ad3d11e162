"""What `revedge export` tells of the files that passed."""

from typing import TYPE_CHECKING, Any

from revedge.cli.output import table
from revedge.units import format_bytes

if TYPE_CHECKING:
    from revedge.export.writer import ExportedFile


def report_text(files: "list[ExportedFile]", numerics: str) -> str:
    """Return the table of files, and what their comparison has shown, as people read it."""
    rows = [
        (
            file.format,
            path.name,
            format_bytes(path.stat().st_size),
            *_measured(file.measured.get(path.name)),
            f"{file.parity.spike_flips} of {file.parity.compared_spikes}",
            f"{file.parity.max_logit_difference:.2g}",
            f"{file.parity.argmax_changed} of {file.parity.test_samples}",
            f"{100 * file.parity.accuracy:.2f} %",
        )
        for file in files
        for path in file.paths
    ]
    header = (
        "format",
        "file",
        "size",
        "ms per step",
        "memory",
        "spikes changed",
        "logits",
        "predictions changed",
        "accuracy",
    )
    lines = [table(header, rows)]
    for file in files:
        parity = file.parity
        if numerics == "exact":
            lines.append(
                f"{file.format}: every spike, state and logit is that of the exact form, bit for bit"
            )
            continue
        lines.append(
            f"{file.format}: given the network's states and spikes for {parity.steps} steps at batch "
            f"{' and '.join(map(str, parity.batches))}, every value agrees within its rounding bound (the closest "
            f"comes to {100 * parity.largest_share_of_bound:.0f} % of it), {parity.forced_flips} spikes differ"
            + (
                f", {parity.farthest_flip:.1e} from their threshold at most"
                if parity.forced_flips
                else ""
            )
        )
    for file in files:
        if not file.parity.rounds:
            lines.append(
                f"{file.format}: its streams are off the network's grid by up to half a step, so spikes near "
                f"thresholds flip, {file.parity.forced_flips} of {file.parity.compared_spikes} given the network's "
                f"states and spikes; {file.parity.argmax_changed} of {file.parity.test_samples} predictions "
                "changed, which is reported and not judged"
            )
    for file in files:
        if file.golden is not None and not file.parity.sequence_identical:
            lines.append(
                f"{file.format}: optimized, its bits differ from those of its step in a loop"
            )
    model = next((path for f in files for path in f.paths if path.suffix == ".onnx"), None)
    if model is not None:
        lines.append(f"run it without torch: revedge run {model} --data NAME")
        lines.append(f"check it on the board: revedge verify-export {model}")
    return "\n".join(lines)


def _measured(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return f"{found['step_ms']:.2f}", format_bytes(found["measured_peak_bytes"])


def payload_of(files: "list[ExportedFile]") -> dict[str, Any]:
    """Return the same for --json; the figures on top are those of the worst file."""
    from dataclasses import asdict

    return {
        "files": [str(path) for file in files for path in file.paths],
        "spike_flips": max(file.parity.spike_flips for file in files),
        "max_logit_difference": max(file.parity.max_logit_difference for file in files),
        "argmax_changed": max(file.parity.argmax_changed for file in files),
        "compared_spikes": max(file.parity.compared_spikes for file in files),
        "test_accuracy": min(file.parity.accuracy for file in files),
        "formats": {
            file.format: {
                **asdict(file.parity),
                "file_bytes": [path.stat().st_size for path in file.paths],
                "measured": file.measured,
                "golden": None if file.golden is None else asdict(file.golden),
            }
            for file in files
        },
    }
