"""The tracing process: one JSON request per line on stdin, one JSON answer per line on stdout.

``{"do": "families"}`` -> ``{"families": {family: [model, ...]}}``
``{"do": "trace", "setting": {...}}`` -> the bytes of two training steps and an evaluation, see
`trace`. A mistake in a request -> ``{"error": text, "kind": class name}``. Ends when stdin does.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

from revedge import models
from revedge.allocator import page_bytes
from revedge.engine import tail
from revedge.engine.signal import Signal, chunks
from revedge.errors import RevedgeError
from revedge.kernels import native_status
from revedge.planner.setting import Setting
from revedge.planner.step import Rehearsal
from revedge.planner.tracer import StorageTracker, allocated_bytes


def trace(setting: Setting, *, thorough: bool = False) -> dict[str, int]:
    """Return the peak live bytes of a training at ``setting``, by kind, without running it.

    A step of one micro-batch or of two, and one evaluation step, run on meta tensors; a second step only where the
    first has left anything behind. Of the chunks that a tail reads, the first two and the last are run: those between
    take what the second takes (``thorough``: all, and no other short cut either). Keys: ``peak_bytes``, its parts
    ``weights_bytes, gradients_bytes, optimizer_bytes, data_bytes, activations_bytes,
    workspace_bytes`` as they stand at the peak, ``sgd_bytes`` (the optimizer's, were it SGD), and the counts
    ``parameters, convolutions, operations``.
    """
    rehearsal = Rehearsal(setting, "meta")
    tracker = StorageTracker(
        page_bytes=page_bytes(),
        native_kernels=bool(native_status()["loaded"]) and setting.device == "cpu",
        short_cuts=not thorough,
    )
    tracker.add(rehearsal.weights(), "weights")
    tracker.add(rehearsal.optimizer_state(), "optimizer")
    before = tracker.live_bytes
    few = mock.patch.object(tail, "chunks", chunks if thorough else _few_chunks)
    with tracker, few:
        rehearsal.train_step(tracker.name)
        if tracker.live_bytes != before:
            rehearsal.train_step(tracker.name)
        rehearsal.evaluate(tracker.name)
    parts = tracker.bytes_at_peak()
    kinds = ("weights", "gradients", "optimizer", "data", "activations")
    return {
        "peak_bytes": tracker.peak_bytes,
        **{f"{kind}_bytes": parts.get(kind, 0) for kind in kinds},
        "workspace_bytes": tracker.peak_workspace_bytes,
        "sgd_bytes": sum(
            allocated_bytes(p.numel() * p.element_size(), page_bytes())
            for p in rehearsal.parameters
        ),
        "parameters": sum(p.numel() for p in rehearsal.parameters),
        "convolutions": len(tracker.convolutions),
        "operations": tracker.operations,
    }


def _few_chunks(signal: Signal, *, whole: bool) -> Iterator[tuple[int, int]]:
    every = list(chunks(signal, whole=whole))
    yield from every if len(every) <= 3 else (*every[:2], every[-1])


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one request."""
    try:
        if request["do"] == "families":
            return {
                "families": {family: list(members) for family, members in models.families().items()}
            }
        return dict(trace(Setting.from_json(request["setting"])))
    except RevedgeError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except (TypeError, ValueError, RuntimeError, KeyError, ArithmeticError) as error:
        return {"error": f"{type(error).__name__}: {error}", "kind": "failure"}


def main() -> int:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; its end closes stdin
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out, contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
