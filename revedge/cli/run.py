"""`revedge run`: an exported ONNX model as on a board, without torch: on a test split, a recording, or a stream."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from revedge import allocator
from revedge.cli.output import emit
from revedge.errors import UsageError
from revedge.units import format_bytes

if TYPE_CHECKING:
    from revedge.data import FrameCache
    from revedge.export.runner import StreamRunner

_EPILOG = """examples:
  revedge run out/model.onnx --data digits
  revedge run out/model.onnx --data nmnist --data-dir recordings --batch 8 --json
  revedge run out/model.scan.onnx --input recording.aedat4
  revedge run out/model.onnx --input long.npz --window-us 300000
  camera | revedge run out/model.onnx --stream --window-us 300000

recordings: .npz with t [us], x, y, p; .bin of N-MNIST; .aedat4 (needs pip install 'revedge[aedat4]').
--stream reads lines t x y p from standard input and prints one line per window with events:
its begin in us, the predicted class, the events in it. A window is cut into the model's time steps,
and every window begins at rest. A file of a fixed batch runs at that batch, filled up with the last
recording where there are fewer; one of a fixed number of steps is given as many frames of --data, the
recording again from its beginning."""
_TELL_EVERY_S = 5.0
# At most what loading takes beside Python: onnxruntime, and of the file its bytes, weights as read, and in their layout
_LIBRARIES_BYTES, _COPIES = 32 << 20, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", type=Path, help="an ONNX file of revedge export")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="NAME", help="the test split of a data set, as in train")
    what.add_argument("--input", metavar="FILE", type=Path, help="one recording of events")
    what.add_argument("--stream", action="store_true", help="events from standard input")
    parser.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="where the files of --data are"
    )
    parser.add_argument(
        "--window-us",
        metavar="US",
        type=int,
        help="length of a window: needed by --stream; cuts --input into windows (default: one, all of it)",
    )
    parser.add_argument(
        "--batch", type=int, help="recordings of --data at a time (default: that of the file, or 1)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of onnxruntime (default: %(default)s)"
    )
    parser.add_argument(
        "--low-memory",
        action="store_true",
        help="without a second copy of the weights; a third slower; by itself where memory is short",
    )


def run(args: argparse.Namespace) -> int:
    """Run what was asked for."""
    from revedge.export.onnx_bytes import require_onnx

    require_onnx(args.model)
    if args.batch is not None and args.batch < 1:
        raise UsageError(f"--batch {args.batch} is not a number of recordings; use 1 or more")
    if args.data is None and (args.batch is not None or args.data_dir is not None):
        raise UsageError("--batch and --data-dir go with --data; leave them out")
    allocator.return_freed_memory()  # before the first large allocation: loading a file frees many
    from revedge.export.runner import StreamRunner

    low_memory = args.low_memory or _is_short(args.model)
    runner = StreamRunner(args.model, threads=args.threads, low_memory=low_memory)
    if args.data is None:
        from revedge.cli.run_events import run_input, run_stream

        return run_stream(args, runner) if args.stream else run_input(args, runner)
    if args.window_us is not None:
        raise UsageError("--window-us goes with --input and --stream; leave it out")
    return _run_data(args, runner)


def _is_short(model: Path) -> bool:
    """Whether too little memory is free for a second copy of the weights; if so, it is said."""
    from revedge.devices.meter import available_bytes

    free_bytes = available_bytes()
    needed_bytes = _LIBRARIES_BYTES + _COPIES * model.stat().st_size
    if free_bytes >= needed_bytes:
        return False
    told = f"{format_bytes(free_bytes)} are free and loading may take {format_bytes(needed_bytes)}"
    print(f"{told}: running as with --low-memory", file=sys.stderr)
    return True


def _run_data(args: argparse.Namespace, runner: "StreamRunner") -> int:
    """Run the test split and report accuracy, time per step and peak memory of this process."""
    from revedge.data import FrameCache, prepare
    from revedge.export.measure import peak_rss_bytes

    frames = FrameCache.open(prepare(args.data, args.data_dir, runner.manifest.timesteps))
    _check_fit(runner, frames, args)
    batch = _batch(args, runner.manifest.batch)
    correct, step_s = _run_test_split(runner, frames, batch)
    samples = len(frames.test_indices)
    batch = runner.manifest.batch or min(batch, samples)
    accuracy, step_ms = correct / max(1, samples), 1e3 * step_s
    peak_bytes = peak_rss_bytes()
    emit(
        args,
        f"accuracy {100 * accuracy:.2f} % ({correct} of {samples}), {step_ms:.2f} ms per step of {batch}, "
        f"peak memory {format_bytes(peak_bytes)}",
        {
            "accuracy": accuracy,
            "step_ms": step_ms,
            "measured_peak_bytes": peak_bytes,
            "correct": correct,
            "test_samples": samples,
            "timesteps": runner.manifest.timesteps,
            "batch": batch,
            "threads": args.threads,
        },
    )
    return 0


def _batch(args: argparse.Namespace, fixed: int | None) -> int:
    """How many recordings at a time."""
    if fixed is not None and args.batch not in (None, fixed):
        raise UsageError(
            f"--batch {args.batch} does not fit {args.model}, which was exported for {fixed}; leave it out, or export "
            "with --batch dynamic"
        )
    return args.batch or fixed or 1


def _run_test_split(runner: "StreamRunner", frames: "FrameCache", batch: int) -> tuple[int, float]:
    """Return correct predictions and the median seconds per step."""
    import numpy as np

    from revedge.export.recordings import fill_batch, repeat_frames

    file = runner.manifest
    scale = np.float32(frames.scale)
    correct, per_step_s = 0, []
    total, told = len(frames.test_indices), time.monotonic()
    for begin in range(0, total, batch):
        raw, labels = frames.batch(frames.test_indices[begin : begin + batch])
        x = raw.astype(np.float32) * scale
        if file.steps is not None and not file.static:
            x = repeat_frames(x, file.steps, False)
        x = fill_batch(x, file.batch)
        runner.reset(x.shape[-4])
        start = time.perf_counter()
        logits = runner.sequence(x)[: len(labels)]
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
