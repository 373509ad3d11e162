"""The tracing process: one JSON request per line on stdin, one JSON answer per line on stdout.

A request has ``page_bytes``, the size of a memory page where the training will be; None or none: as here.

``{"do": "families"}`` -> ``{"families": {family: [model, ...]}}``
``{"do": "about", "setting": {...}}`` -> of a model of the user's, see `about`.
``{"do": "trace", "setting": {...}}`` -> the bytes of two training steps and an evaluation, see
`trace`. ``{"do": "timeline", "setting": {...}}`` -> see `revedge.planner.timeline`, and ``kept_bytes``, the
activations at the peak that each run's forward pass has made. ``{"do": "describe", "setting": {...}}`` -> the
network's geometry for the closed form (`revedge.planner.form`), or ``{"not_covered": reason}``.
``{"do": "time", "module": NAME, "asked": {...}}`` -> ``{"lines": [...]}`` of `time_probe` or `unit_probe`: torch is
loaded here. A mistake in a request -> ``{"error": text, "kind": class name}``, in code of the user's with its
``traceback``; what such code prints goes to stderr. Ends when stdin does.
"""

import contextlib
import dataclasses
import functools
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from revedge import allocator, models
from revedge.engine import tail, update_in_backward
from revedge.engine.signal import Signal, chunks
from revedge.errors import RevedgeError, UsageError
from revedge.kernels import native_status
from revedge.models.user_net import UserNet
from revedge.planner import time_probe, unit_probe
from revedge.planner.cuda_pool import reserved_bytes
from revedge.planner.form.describe import describe
from revedge.planner.form.shape import NotCoveredError
from revedge.planner.kept_nets import as_made, kept_net
from revedge.planner.setting import Setting
from revedge.planner.stack import LeftOut, cut_short, shallower, stacks
from revedge.planner.step import Rehearsal
from revedge.planner.timeline import timeline
from revedge.planner.tracer import StorageTracker
from revedge.planner.work import Work
from revedge.user_code import is_user_model, raised, traceback_text


def trace(
    setting: Setting, *, thorough: bool = False, page_bytes: int | None = None
) -> dict[str, int]:
    """Return the peak live bytes of a training at ``setting``, by kind, without running it.

    A step of one micro-batch or of two, and one evaluation step, run on meta tensors; a second step only where the
    first has left anything behind. Of the chunks that a tail reads, the first two and the last are run: those between
    take what the second takes (``thorough``: all, and no other short cut either). Keys: ``peak_bytes``, its parts
    ``weights_bytes, gradients_bytes, optimizer_bytes, data_bytes, activations_bytes,
    workspace_bytes`` as they stand at the peak, ``sgd_bytes`` (the optimizer's, were it SGD), the counts
    ``parameters, parameter_tensors, runs, convolutions`` (that oneDNN computes; ``narrow``: one of them as a matrix
    product), ``operations``, and the work of one micro-batch: ``multiplications, moved_bytes, calls``;
    for CUDA ``reserved_bytes``, what its caching allocator takes for this.
    """
    on_cuda = setting.device == "cuda"  # its pool has to see every allocation
    rehearsal, tracker, work, left_out = _follow(
        setting, thorough=thorough or on_cuda, page_bytes=page_bytes
    )
    rounds = 1 if setting.micro_batch_size == setting.batch_size else 2
    parts = tracker.bytes_at_peak()
    kinds = ("weights", "gradients", "optimizer", "data", "activations")
    return {
        "peak_bytes": tracker.peak_bytes,
        **{f"{kind}_bytes": parts.get(kind, 0) for kind in kinds},
        "workspace_bytes": tracker.peak_workspace_bytes,
        "sgd_bytes": left_out.sgd_bytes + sum(map(tracker.taken_bytes, rehearsal.parameters)),
        "parameters": left_out.parameters + sum(p.numel() for p in rehearsal.parameters),
        "parameter_tensors": left_out.parameter_tensors + len(rehearsal.parameters),
        "runs": len(rehearsal.net.runs()),
        "convolutions": len(tracker.convolutions),
        "narrow": int(tracker.narrow),
        "operations": tracker.operations,
        "multiplications": work.multiplications // rounds,
        "moved_bytes": work.moved_bytes // rounds,
        "calls": work.calls // rounds,
        **({"reserved_bytes": reserved_bytes(tracker.events)} if on_cuda else {}),
    }


def geometry(setting: Setting) -> dict[str, Any]:
    """Return what the closed form knows of a network; nothing of it depends on T, batch, or how memory is saved."""
    if not native_status()["loaded"]:
        return {"not_covered": "operators without C kernels"}
    shallow, left_out = shallower(setting)
    with torch.device("meta"):
        net = models.create(
            setting.model,
            in_shape=setting.in_shape,
            num_classes=setting.num_classes,
            timesteps=1,
            **shallow.model_options,
        )
    try:
        return describe(net, left_out)
    except NotCoveredError as reason:
        return {"not_covered": str(reason)}


def about(setting: Setting) -> dict[str, Any]:
    """Return what `revedge.engine.apply` makes of a model of the user's.

    Keys: ``runs``, their number; ``updates``, whether parameters can be updated in the backward pass; ``report``, the
    text of `apply` under the strategies of ``setting``, None of a net of the engine.
    """
    net = Rehearsal(setting, "meta", kept_net(setting)).net
    try:
        update_in_backward(net, lambda parameter, gradient: None)
    except UsageError:
        updates = False
    else:
        updates = True
    as_made(net)
    report = str(net.report) if isinstance(net, UserNet) else None
    return {"runs": len(net.runs()), "updates": updates, "report": report}


def _follow(
    setting: Setting, *, thorough: bool, page_bytes: int | None = None
) -> tuple[Rehearsal, StorageTracker, Work, LeftOut]:
    """Rehearse on meta tensors; the work is that of the first step."""
    kept = None if thorough else kept_net(setting)
    run, blocks = (setting, 0) if thorough else shallower(setting)
    rehearsal = Rehearsal(run, "meta", kept)
    tracker = StorageTracker(
        page_bytes=page_bytes or allocator.page_bytes(),
        native_kernels=bool(native_status()["loaded"]) and setting.device == "cpu",
        threads=setting.threads,
        short_cuts=not thorough,
    )
    tracker.add(rehearsal.weights(), "weights")
    tracker.add(rehearsal.optimizer_state(), "optimizer")
    try:
        with cut_short(rehearsal.net) if kept is not None else nullcontext() as lacking:
            left_out = LeftOut(
                lacking or (dict.fromkeys(stacks(rehearsal.net), blocks) if blocks else {}),
                tracker,
                slots=len(rehearsal.slots) if kept is None else None,
                counted=bool(rehearsal.step_counts),
            )
            work = _rehearse(rehearsal, tracker, left_out, thorough=thorough)
    finally:
        if kept is not None:
            tracker.let_go()
            as_made(kept)
    return rehearsal, tracker, work, left_out


def _rehearse(
    rehearsal: Rehearsal, tracker: StorageTracker, left_out: LeftOut, *, thorough: bool
) -> Work:
    """Let ``tracker`` follow a step, or two, and an evaluation; return the work of the first step."""

    def watch(tensors: list[Tensor], kind: str) -> None:
        tracker.name(tensors, kind)
        if kind == "gradients" and not rehearsal.setting.update_in_backward:
            left_out.after_backward()

    def step() -> None:
        rehearsal.train_step(watch)
        left_out.after_backward()  # and after the update, which leaves none

    for number, each in enumerate(rehearsal.net.runs()):
        # Not by hooks: for their sake the net would give up its chain, and take more.
        each.__dict__["run_forward"] = functools.partial(_told, tracker, number, each.run_forward)
    before = tracker.live_bytes
    few_chunks = functools.partial(_few_chunks, tracker.work)
    few = mock.patch.object(tail, "chunks", chunks if thorough else few_chunks)
    with tracker, few, left_out.followed():
        step()
        work = dataclasses.replace(tracker.work)
        if tracker.live_bytes != before:
            step()
        rehearsal.evaluate(watch)
    return work


def _told(
    tracker: StorageTracker, number: int, run_forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run the forward pass of run ``number``, and let the tracker know."""
    tracker.run = number
    try:
        return run_forward(*args, **kwargs)
    finally:
        tracker.run = None


def _few_chunks(
    work: Work, signal: Signal, *, whole: bool, backward: bool = False
) -> Iterator[tuple[int, int]]:
    """As `chunks`, but the second stands for all up to the last."""
    every = list(chunks(signal, whole=whole, backward=backward))
    if len(every) <= 3:
        yield from every
        return
    yield every[0]
    work.repeat = len(every) - 2
    try:
        yield every[1]
    finally:
        work.repeat = 1
    yield every[-1]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one request."""
    users = is_user_model(request.get("setting", {}).get("model", ""))
    try:
        if request["do"] == "families":
            return {
                "families": {family: list(members) for family, members in models.families().items()}
            }
        if request["do"] == "time":
            probe = {each.__name__: each for each in (time_probe, unit_probe)}[request["module"]]
            return {"lines": list(probe.lines(request["asked"]))}
        setting = Setting.from_json(request["setting"])
        if request["do"] == "describe":
            return geometry(setting)
        if request["do"] == "about":
            return about(setting)
        if request["do"] == "timeline":
            rehearsal, tracker, _, _ = _follow(
                setting, thorough=True, page_bytes=request.get("page_bytes")
            )
            kept = tracker.kept_at_peak(len(rehearsal.net.runs()))
            return {**timeline(tracker.storages, tracker.operations), "kept_bytes": kept}
        return dict(trace(setting, page_bytes=request.get("page_bytes")))
    except RevedgeError as error:
        there = {"traceback": traceback_text(error)} if users else {}
        return {"error": str(error), "kind": type(error).__name__, **there}
    except Exception as error:
        if users:
            text = str(raised(request["setting"]["model"], "a training step, traced,", error))
            return {"error": text, "kind": "UsageError", "traceback": traceback_text(error)}
        return {"error": f"{type(error).__name__}: {error}", "kind": "failure"}


def main() -> int:
    """Answer requests until stdin ends."""
    allocator.return_freed_memory()  # as where steps are timed in a process of their own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; its end closes stdin
    gc.freeze()  # the collector need not look through torch's own objects at every trace
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out, contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
