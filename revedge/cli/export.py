"""`revedge export`: TorchScript and ONNX files of a finished training, compared with it before they count."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revedge.cli.output import emit, table
from revedge.errors import CheckpointError, ExportError, UsageError
from revedge.units import format_bytes
from revedge.user_code import require_unchanged

if TYPE_CHECKING:
    from revedge.data import FrameCache
    from revedge.export.writer import ExportedFile, RejectedError
    from revedge.models import SpikingNet
    from revedge.models.user_net import UserNet

_EPILOG = """examples:
  revedge export runs/first --format torchscript,onnx -o out
  revedge export runs/first --format onnx,onnx-scan --opset 17 -o out --json
  revedge export runs/first --format onnx,onnx-unrolled --target jetpack6 --batch 1 -o out

formats: torchscript; pt2 (torch.export); nir; onnx (one time step); onnx-scan (a whole recording of any length);
onnx-blocks (several steps, states in and out); onnx-unrolled (a recording of fixed length).
targets: ort (onnxruntime); jetpack5 and jetpack6 (TensorRT); generic (basic operators only).

Every file is compared with the trained network: step by step with the network's own states and spikes,
free running at two batch sizes, and on the whole test split; a golden file for the check on the
target is written (revedge verify-export); time and memory of one stream are measured. A file that
differs is renamed to *.rejected and the command ends with exit code 1, after the table of those that
passed. Of nir, which cannot round, changed predictions are counted and not judged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished training")
    parser.add_argument(
        "--format",
        default="torchscript,onnx",
        help="one or several of torchscript, pt2, nir, onnx, onnx-scan, onnx-blocks, onnx-unrolled, with commas "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "-o", "--out", metavar="DIR", type=Path, required=True, help="folder for the files"
    )
    parser.add_argument(
        "--target",
        help="where ONNX files will run: ort, jetpack5, jetpack6 or generic (default: ort)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        help="ONNX operator set, 13 to 23 (default: the target's, 17 or 18; 19 for int8 on ort)",
    )
    parser.add_argument(
        "--batch",
        help="of ONNX files: a number, or dynamic (default: dynamic, for jetpack5 and jetpack6 1)",
    )
    parser.add_argument(
        "--steps", type=int, help="time steps of onnx-unrolled (default: those of the training)"
    )
    parser.add_argument(
        "--weights",
        help="of ONNX files: float32, or int8 for weights that lie on a power-of-two grid already "
        "(default: float32)",
    )
    parser.add_argument(
        "--numerics",
        choices=("float", "exact"),
        default="float",
        help="exact: 8-bit weights and integer sums, so that every runtime gives the same bits; "
        "finishes the training for it inside its budget if that was not done (default: %(default)s)",
    )
    parser.add_argument(
        "--finish-epochs",
        metavar="N",
        type=int,
        help="of that finish (default: a fifth of the training's, at least 3); one that was begun keeps its number",
    )
    parser.add_argument(
        "--cost",
        action="store_true",
        help="measure what a sample costs: operations at the firing rates of test samples, weights and states",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="where the recordings are, if they have moved"
    )


def run(args: argparse.Namespace) -> int:
    """Write, compare, report."""
    _require_folder(args.run)
    from revedge.export.formats import choices, parse_formats

    if args.finish_epochs is not None and args.numerics != "exact":
        raise UsageError(
            f"--finish-epochs {args.finish_epochs} goes with --numerics exact; leave it out"
        )
    formats = parse_formats(args.format)
    chosen = choices(
        formats,
        target=args.target,
        opset=args.opset,
        batch=args.batch,
        steps=args.steps,
        weights=args.weights,
        numerics=args.numerics,
    )
    # Before torch is here: while it finishes, this process counts against the budget.
    args.run = _exact_run(args) if args.numerics == "exact" else args.run
    from revedge.export.writer import RejectedError, export_network

    description = _read_description(args.run)
    net = _load_network(args.run, description)
    frames = _open_frames(args.run, description, args.data_dir)
    rejected: RejectedError | None = None
    try:
        files = export_network(
            net,
            frames,
            args.out,
            formats,
            choices=chosen,
            numerics=args.numerics,
            data_name=description["data"]["name"],
            measured=True,
            tell=lambda line: print(f"revedge export: {line}", file=sys.stderr, flush=True),
        )
    except RejectedError as error:
        rejected, files = error, error.done
    if files:
        _tell(args, net, frames, files, rejected)
    if rejected is not None:
        raise rejected
    return 0


def _tell(
    args: argparse.Namespace,
    net: "SpikingNet",
    frames: "FrameCache",
    files: "list[ExportedFile]",
    rejected: "RejectedError | None",
) -> None:
    """Print what passed, and what it costs."""
    text, payload = _report(files, args.numerics), _payload(files)
    payload["errors"] = [str(error) for error in rejected.failures] if rejected else []
    if args.cost:
        from revedge.cli.cost import COST_FILE, cost_of

        lines, cost = cost_of(net, frames, 1 if args.weights == "int8" else 4)
        payload["cost"] = {"network": files[0].manifest.network, **cost}
        (args.out / COST_FILE).write_text(json.dumps(payload["cost"], indent=1) + "\n")
        text = f"{text}\n{lines}"
    emit(args, text, payload)


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise UsageError(f"RUN {path} does not exist; name the --out folder of revedge train")
    if not (path / "model.json").is_file() or not (path / "model.safetensors").is_file():
        raise UsageError(
            f"RUN {path} holds no finished training (no model.json and model.safetensors); end it with: "
            f"revedge train --resume {path}"
        )


def _exact_run(args: argparse.Namespace) -> Path:
    """Return the folder of the run's finish, which is made or continued if it is not there."""
    from revedge.devices.finish import exact_folder, finish
    from revedge.devices.run_folder import RunFolder
    from revedge.errors import RevedgeError

    if args.finish_epochs is not None and args.finish_epochs < 1:
        raise UsageError(
            f"--finish-epochs {args.finish_epochs} is not a number of epochs; use 1 or more"
        )
    run = RunFolder(args.run)
    if _read_description(args.run).get("numerics") == "exact":
        return run.path  # it is a finish itself
    outcome = finish(run, args.finish_epochs)
    if outcome is not None and outcome.done is None:
        raise RevedgeError(
            f"the finish was stopped at step {outcome.step}; the same command goes on from there"
        )
    return exact_folder(run).path


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        value = json.loads(path.read_text())
        version = value["version"]
        readable = value["format"] == "revedge-model" and (version != 1 or _is_complete(value))
    except (ValueError, KeyError, TypeError, OSError):
        readable, version, value = False, None, {}
    if not readable:
        raise CheckpointError(f"{path} is damaged; train again, or copy the run again")
    if version != 1:
        raise CheckpointError(
            f"{path} is of model version {version!r}, this revedge reads 1; train again"
        )
    return dict(value)


def _is_complete(value: dict[str, Any]) -> bool:
    return (
        all(isinstance(value[part]["name"], str) for part in ("config", "data"))
        and isinstance(value["data"]["timesteps"], int)
        and isinstance(value["size_bytes"], int)
        and isinstance(value["sha256"], str)
    )


def _load_network(folder: Path, description: dict[str, Any]) -> "SpikingNet":
    from revedge import models
    from revedge.devices.tensor_file import check_file, read_tensors
    from revedge.models.user_net import UserNet

    path = folder / "model.safetensors"
    require_unchanged(description["config"]["name"], description.get("code_sha256"))
    check_file(path, description["size_bytes"], description["sha256"])
    try:
        net = models.create(**description["config"])
    except TypeError:
        raise CheckpointError(
            f"{folder / 'model.json'} describes a network that this revedge cannot build"
        ) from None
    if description.get("numerics") == "exact":
        from revedge.models.folded import fold_network

        net = fold_network(net)
    read_tensors(path, net.state_dict())
    return _as_runs(net).eval() if isinstance(net, UserNet) else net.eval()


def _as_runs(net: "UserNet") -> "SpikingNet":
    """Return a module of the user's as a network that can be taken step by step.

    Raises:
        ExportError: something in it has no counterpart; names the layer.
    """
    from revedge.export import import_module

    sizes: Any = {"in_shape": net.in_shape, "timesteps": net.timesteps, "static": net.static}
    try:
        made = import_module(net.plain(), **sizes)
    except ExportError as reason:
        raise ExportError(f"model {net.config['name']!r} cannot be exported: {reason}") from None
    made.config = net.config
    return made


def _open_frames(folder: Path, description: dict[str, Any], data_dir: Path | None) -> "FrameCache":
    from revedge.data import FrameCache, prepare
    from revedge.planner.plan import Plan

    plan = folder / "plan.toml"
    if data_dir is None and plan.is_file():
        saved = Plan.load(plan).data_dir
        data_dir = None if saved is None else Path(saved)
    data = description["data"]
    return FrameCache.open(prepare(data["name"], data_dir, data["timesteps"]))


def _report(files: "list[ExportedFile]", numerics: str) -> str:
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


def _payload(files: "list[ExportedFile]") -> dict[str, Any]:
    """The three figures on top are those of the worst file."""
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
