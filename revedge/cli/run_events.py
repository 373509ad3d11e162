"""`revedge run --input` and `--stream`: events to predictions, window by window, with numpy and onnxruntime only."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from revedge.cli.output import emit
from revedge.data.event_files import Events, read_events
from revedge.data.event_frames import frames_of
from revedge.data.event_text import Windows, read_lines
from revedge.errors import UsageError
from revedge.export.measure import peak_rss_bytes
from revedge.export.recordings import fill_batch
from revedge.export.runner import StreamRunner
from revedge.units import format_bytes


def run_input(args: argparse.Namespace, runner: StreamRunner) -> int:
    """Predict one recording: as a whole, cut as in training, or window by window."""
    _check_takes_events(args, runner)
    events = read_events(args.input)
    decide = _Decider(runner)
    if args.window_us is None:
        found = [decide(int(events["t"][0]), events, None)]
    else:
        windows = Windows(_length(args))
        found = [decide(begin, part, windows.length_us) for begin, part in windows.add(events)]
        found += [decide(begin, part, windows.length_us) for begin, part in windows.rest()]
    lines = [_line(one) for one in found]
    if args.window_us is None:
        one = found[0]
        lines = [
            f"class {one['class']} (mean logit {max(one['logits']):.4g}), {one['events']} events"
        ]
    emit(args, "\n".join([*lines, decide.summary()]), {**decide.payload(), "windows": found})
    return 0


def run_stream(args: argparse.Namespace, runner: StreamRunner) -> int:
    """Predict each window of standard input as soon as an event after it arrives; the last at the end.

    Raises:
        UsageError: --window-us is missing.
    """
    _check_takes_events(args, runner)
    if args.window_us is None:
        raise UsageError(
            "--stream needs --window-us, the length of a recording of the training in us"
        )
    if sys.stdin is None:
        raise UsageError("--stream reads standard input, which is closed; send events to it")
    windows, decide = Windows(_length(args)), _Decider(runner)

    def arriving() -> Iterator[tuple[int, Events]]:
        for events in read_lines(sys.stdin.buffer):
            yield from windows.add(events)
        yield from windows.rest()

    for begin, events in arriving():
        one = decide(begin, events, windows.length_us)
        print(json.dumps(one, allow_nan=False) if args.json else _line(one), flush=True)
    late = f", {windows.late_events} events came too late" if windows.late_events else ""
    print(f"revedge run: {decide.summary()}{late}", file=sys.stderr, flush=True)
    emit(args, "", {**decide.payload(), "late_events": windows.late_events})
    return 0


class _Decider:
    """Events of one window to a decision; keeps count."""

    def __init__(self, runner: StreamRunner) -> None:
        self.runner = runner
        self.count = 0
        self.step_s: list[float] = []

    def __call__(self, begin: int, events: Events, length_us: int | None) -> dict[str, Any]:
        told = self.runner.manifest
        steps = told.steps or told.timesteps
        span = None if length_us is None else (begin, begin + length_us)
        frames = frames_of(
            events, (told.in_shape[0], told.in_shape[1], told.in_shape[2]), steps, span
        )
        x = frames[:, None].astype(np.float32) * np.float32(told.input_scale)
        x = fill_batch(x, told.batch)
        self.runner.reset(x.shape[1])
        start = time.perf_counter()
        logits = self.runner.sequence(x)[0]
        self.step_s = [*self.step_s[-999:], (time.perf_counter() - start) / steps]
        self.count += 1
        index = int(logits.argmax())
        name = told.class_names[index] if index < len(told.class_names) else str(index)
        return {
            "begin_us": begin,
            "class": name,
            "class_index": index,
            "logits": [float(value) for value in logits],
            "events": len(events),
        }

    def summary(self) -> str:
        """How many windows, how fast, how large."""
        return (
            f"{self.count} windows, {self._step_ms():.2f} ms per step, "
            f"peak memory {format_bytes(peak_rss_bytes())}"
        )

    def payload(self) -> dict[str, Any]:
        """The same for --json."""
        return {
            "window_count": self.count,
            "step_ms": self._step_ms(),
            "measured_peak_bytes": peak_rss_bytes(),
        }

    def _step_ms(self) -> float:
        return 1e3 * statistics.median(self.step_s) if self.step_s else 0.0


def _line(one: dict[str, Any]) -> str:
    return f"{one['begin_us']}\t{one['class']}\t{one['events']}"


def _length(args: argparse.Namespace) -> int:
    if not 1 <= args.window_us <= 1 << 40:
        raise UsageError(f"--window-us {args.window_us} is not a length in us; use 1 or more")
    return int(args.window_us)


def _check_takes_events(args: argparse.Namespace, runner: StreamRunner) -> None:
    told = runner.manifest
    if told.static or told.in_shape[0] not in (1, 2):
        what = "images" if told.static else f"frames of {told.in_shape[0]} channels"
        raise UsageError(f"{args.model} was trained for {what}, not for events; use --data")
