"""`revedge run`: an exported ONNX model on a test split, as on a board: no torch, one frame at a time."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from revedge.cli.output import emit
from revedge.errors import UsageError
from revedge.units import format_bytes

if TYPE_CHECKING:
    from revedge.data import FrameCache
    from revedge.export.runner import StreamRunner

_EPILOG = """examples:
  revedge run out/model.onnx --data digits
  revedge run out/model.onnx --data nmnist --data-dir recordings --batch 8 --json"""
_TELL_EVERY_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", type=Path, help="model.onnx of revedge export")
    parser.add_argument(
        "--data", metavar="NAME", required=True, help="data set, as in revedge train"
    )
    parser.add_argument("--data-dir", metavar="DIR", type=Path, help="where its files are")
    parser.add_argument(
        "--batch", type=int, default=1, help="recordings at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of onnxruntime (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the test split and report accuracy, time per step and peak memory of this process."""
    if not args.model.is_file():
        raise UsageError(
            f"MODEL {args.model} does not exist; write it with: revedge export RUN -o DIR"
        )
    if args.batch < 1:
        raise UsageError(f"--batch {args.batch} is not a number of recordings; use 1 or more")
    from revedge.data import FrameCache, prepare
    from revedge.export.runner import StreamRunner

    runner = StreamRunner(args.model, threads=args.threads)
    frames = FrameCache.open(prepare(args.data, args.data_dir, runner.manifest.timesteps))
    _check_fit(runner, frames, args)
    correct, step_s = _run_test_split(runner, frames, args.batch)
    samples = len(frames.test_indices)
    accuracy, step_ms = correct / max(1, samples), 1e3 * step_s
    peak_bytes = peak_rss_bytes()
    emit(
        args,
        f"accuracy {100 * accuracy:.2f} % ({correct} of {samples}), {step_ms:.2f} ms per step of {args.batch}, "
        f"peak memory {format_bytes(peak_bytes)}",
        {
            "accuracy": accuracy,
            "step_ms": step_ms,
            "measured_peak_bytes": peak_bytes,
            "correct": correct,
            "test_samples": samples,
            "timesteps": runner.manifest.timesteps,
            "batch": args.batch,
            "threads": args.threads,
        },
    )
    return 0


def _run_test_split(runner: "StreamRunner", frames: "FrameCache", batch: int) -> tuple[int, float]:
    """Return correct predictions and the median seconds per step."""
    import numpy as np

    scale = np.float32(frames.scale)
    correct, per_step_s = 0, []
    total, told = len(frames.test_indices), time.monotonic()
    for begin in range(0, total, batch):
        raw, labels = frames.batch(frames.test_indices[begin : begin + batch])
        x = raw.astype(np.float32) * scale
        runner.reset(len(labels))
        start = time.perf_counter()
        logits = runner.sequence(x)
        per_step_s.append((time.perf_counter() - start) / runner.steps_done)
        correct += int(np.count_nonzero(logits.argmax(1) == labels))
        if time.monotonic() - told > _TELL_EVERY_S:
            told, done = time.monotonic(), begin + len(labels)
            print(
                f"revedge run: {done} of {total} recordings, accuracy so far {100 * correct / done:.1f} %",
                file=sys.stderr,
                flush=True,
            )
    return correct, float(np.median(per_step_s)) if per_step_s else 0.0


def _check_fit(runner: "StreamRunner", frames: "FrameCache", args: argparse.Namespace) -> None:
    wanted = runner.manifest
    for what, model, data in (
        ("frames of shape", wanted.in_shape, frames.in_shape),
        ("a number of classes of", wanted.num_classes, frames.num_classes),
        ("static images", wanted.static, frames.static),
    ):
        if model != data:
            raise UsageError(
                f"{args.model} was trained for {what} {model}, --data {args.data} has {data}; "
                f"use the data of its training{f', {wanted.data}' if wanted.data else ''}"
            )


def peak_rss_bytes() -> int:
    """Largest resident set that this process ever had.

    From VmHWM, which begins with the process; ru_maxrss may be that of the parent before exec.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
