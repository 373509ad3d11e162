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
from typing import Any

from revedge import models
from revedge.allocator import page_bytes
from revedge.errors import RevedgeError
from revedge.kernels import native_status
from revedge.planner.setting import Setting
from revedge.planner.step import Rehearsal
from revedge.planner.tracer import StorageTracker


def trace(setting: Setting) -> dict[str, int]:
    """Return the peak live bytes of a training at ``setting``, by kind, without running it.

    Two rounds of forward and backward (two steps, or two micro-batches of one step) and one
    evaluation step run on meta tensors. Keys: ``peak_bytes``, its parts
    ``weights_bytes, gradients_bytes, optimizer_bytes, data_bytes, activations_bytes,
    workspace_bytes`` as they stand at the peak, and the counts ``parameters, convolutions,
    operations``.
    """
    rehearsal = Rehearsal(setting, "meta")
    tracker = StorageTracker(
        page_bytes=page_bytes(),
        native_kernels=bool(native_status()["loaded"]) and setting.device == "cpu",
    )
    tracker.add(rehearsal.weights(), "weights")
    tracker.add(rehearsal.optimizer_state(), "optimizer")
    with tracker:
        rehearsal.train_step(tracker.name)
        if setting.micro_batch_size == setting.batch_size:
            rehearsal.train_step(tracker.name)
        rehearsal.evaluate(tracker.name)
    parts = tracker.bytes_at_peak()
    kinds = ("weights", "gradients", "optimizer", "data", "activations")
    return {
        "peak_bytes": tracker.peak_bytes,
        **{f"{kind}_bytes": parts.get(kind, 0) for kind in kinds},
        "workspace_bytes": tracker.peak_workspace_bytes,
        "parameters": sum(p.numel() for p in rehearsal.parameters),
        "convolutions": len(tracker.convolutions),
        "operations": tracker.operations,
    }


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
