"""`revedge export`: TorchScript and ONNX files of a finished training, compared with it before they count."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from revedge.cli.export_report import payload_of, report_text
from revedge.cli.output import emit
from revedge.cli.trained import load_network, open_frames, read_description, require_trained
from revedge.errors import RevedgeError, UsageError

if TYPE_CHECKING:
    from revedge.data import FrameCache
    from revedge.export.writer import ExportedFile, RejectedError
    from revedge.models import SpikingNet

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
    require_trained(args.run)
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

    description = read_description(args.run)
    net = load_network(args.run, description)
    frames = open_frames(args.run, description, args.data_dir)
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
    text, payload = report_text(files, args.numerics), payload_of(files)
    payload["errors"] = [str(error) for error in rejected.failures] if rejected else []
    if args.cost:
        from revedge.cli.cost import COST_FILE, cost_of

        lines, cost = cost_of(net, frames, 1 if args.weights == "int8" else 4)
        payload["cost"] = {"network": files[0].manifest.network, **cost}
        (args.out / COST_FILE).write_text(json.dumps(payload["cost"], indent=1) + "\n")
        text = f"{text}\n{lines}"
    emit(args, text, payload)


def _exact_run(args: argparse.Namespace) -> Path:
    """Return the folder of the run's finish, which is made or continued if it is not there."""
    from revedge.devices.finish import exact_folder, finish
    from revedge.devices.run_folder import RunFolder

    if args.finish_epochs is not None and args.finish_epochs < 1:
        raise UsageError(
            f"--finish-epochs {args.finish_epochs} is not a number of epochs; use 1 or more"
        )
    run = RunFolder(args.run)
    if read_description(args.run).get("numerics") == "exact":
        return run.path  # it is a finish itself
    outcome = finish(run, args.finish_epochs)
    if outcome is not None and outcome.done is None:
        raise RevedgeError(
            f"the finish was stopped at step {outcome.step}; the same command goes on from there"
        )
    return exact_folder(run).path
