"""`revedge verify-export`: does an exported file do on this machine what the trained network did? Without torch."""

import argparse
from dataclasses import asdict
from pathlib import Path

from revedge.cli.output import emit

_EPILOG = """examples:
  revedge verify-export out/model.onnx --golden out/golden.npz
  NVIDIA_TF32_OVERRIDE=0 revedge verify-export out/model.onnx --provider tensorrt

Copy both files to the board. The golden file holds recordings and what the trained network does with them, step
by step. Exit code 1: the runtime on this machine does something else."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", type=Path, help="an ONNX file of revedge export")
    parser.add_argument(
        "--golden",
        metavar="FILE",
        type=Path,
        help="golden.npz of the same export (default: beside the model)",
    )
    parser.add_argument(
        "--provider",
        metavar="NAME",
        default="cpu",
        help="execution provider of onnxruntime: cpu, cuda, tensorrt or another that it has here "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of onnxruntime (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Compare and report."""
    from revedge.export.golden_check import check_golden

    golden = args.golden or args.model.with_name("golden.npz")
    from revedge.export.runner import provider_named

    provider = provider_named(args.provider)
    found = check_golden(args.model, golden, args.threads, provider=provider)
    steps = (
        f"{found.spike_flips} spikes differ in {found.flipped_steps} of {found.compared_steps} steps from the trained "
        f"network's states; without such spikes every one of {found.compared_values} values lies within its rounding "
        f"bound (at most {100 * found.largest_share_of_bound:.0f} % of it)\n"
        if found.compared_steps
        else ""
    )
    text = f"{steps}decisions are the trained network's, logits differ by {found.max_logit_difference:.2g}"
    emit(args, text, {"verified": True, "provider": provider, **asdict(found)})
    return 0
