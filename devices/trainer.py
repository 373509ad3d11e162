"""The trainer: the process with torch in it. `python -m revedge.devices.trainer RUN_DIR ...`, by the supervisor only.

Its order matters: allocator policy, then torch, then the network and one warm-up step, then the fence, then training.
It imports torch, numpy and revedge's own rooms, nothing else: torch.optim alone would cost 72 MB.
It tells the supervisor what happens as JSON lines on a pipe.
"""

import argparse
import functools
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from revedge import allocator
from revedge.devices import oom
from revedge.devices.meter import ProcessMeter
from revedge.devices.orders import Orders
from revedge.devices.parent import die_with_parent, let_kernel_choose_this_first
from revedge.devices.run_folder import RunFolder
from revedge.devices.watch import Watch
from revedge.errors import BudgetError, RevedgeError
from revedge.planner.plan import Plan
from revedge.units import format_bytes

if TYPE_CHECKING:
    from revedge.devices.loop import TrainingLoop
    from revedge.devices.optimizer import Optimizer
    from revedge.models import SpikingNet

CHECKED_STEPS, CHECK_EVERY = 3, 500
EXIT_DONE, EXIT_OUT_OF_MEMORY, EXIT_STOPPED = 0, 10, 11
# Kept between the fence and the budget, for what RLIMIT_DATA does not see: the first C++ exception (an out-of-memory
# is one) reads 4.5 MiB of unwinding tables, and 1.5 MiB of pages that are mapped already are touched later (measured).
FENCE_MARGIN_BYTES = 6 << 20
# Of that margin, for small blocks and generated code only: without it they are the first to meet the fence, and oneDNN
# then calls code that was never made (5 of 380 runs with a random fence; 0 of 470 with it).
HELD_BACK_BYTES = 2 << 20


class Reporter:
    """Writes events to the supervisor's pipe, one JSON object a line."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one event whole."""
        line = (json.dumps(event) + "\n").encode()
        while line:
            line = line[os.write(self._handle, line) :]


class StopRequest:
    """Set by SIGTERM; the loop asks for it after every step."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        # Ctrl-C reaches the whole process group; the supervisor answers it with one SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.asked


def main(argv: Sequence[str] | None = None) -> int:
    """Train one run folder to its end; the exit code says how it ended."""
    parser = argparse.ArgumentParser(prog="revedge.devices.trainer")
    parser.add_argument("run_dir")
    parser.add_argument("--events", type=int, required=True, help="file descriptor for events")
    parser.add_argument("--orders", type=int, required=True, help="file descriptor for orders")
    parser.add_argument("--parent", type=int, required=True, help="process id of the supervisor")
    args = parser.parse_args(argv)
    report, stop = Reporter(args.events), StopRequest()
    memory_error = ""
    try:
        die_with_parent(args.parent)
        let_kernel_choose_this_first()
        return _train(RunFolder(args.run_dir), report, stop, Orders(args.orders))
    except RevedgeError as error:
        report(
            {
                "event": "error",
                "kind": type(error).__name__,
                "text": str(error),
                "exit_code": error.exit_code,
            }
        )
        return error.exit_code
    except Exception as error:
        memory_error = oom.describe(error)
        if not oom.classify(f"{type(error).__name__}: {error}"):
            raise
        oom.release(error)
    # Only here, outside the except block, is what the failed step held really free.
    allocator.trim()
    report(
        {"event": "out_of_memory", "text": memory_error, "rss_bytes": ProcessMeter().rss_bytes()}
    )
    return EXIT_OUT_OF_MEMORY


def _train(run: RunFolder, report: Reporter, stop: StopRequest, wanted: Orders) -> int:
    allocator.return_freed_memory()
    plan = Plan.load(run.plan)
    loop = _build(run, plan, report, stop)
    from revedge.devices.loop import Stopped

    device_bytes = _device_meter(plan.device)
    watch = Watch(plan.budget_bytes, device_bytes, wanted)
    loop.restore()
    if loop.position.step < loop.total_steps:
        loop.warm_up()
    allocator.trim()
    base_bytes = ProcessMeter().rss_bytes()
    left_bytes = watch.left_bytes() - FENCE_MARGIN_BYTES
    if left_bytes <= 0:
        raise BudgetError(
            f"budget {format_bytes(plan.budget_bytes)} is used up before the first step (network loaded: "
            f"{format_bytes(watch.now_bytes())}); give a larger --budget",
            floor_bytes=watch.now_bytes() + FENCE_MARGIN_BYTES,
        )
    _set_fence(plan.device, left_bytes, device_bytes())
    loop.watch, loop.paused = watch, watch.paused
    watch.listen()
    report(
        {
            "event": "start",
            "step": loop.position.step,
            "total_steps": loop.total_steps,
            "steps_per_epoch": loop.steps_per_epoch,
            "micro_batch_size": plan.micro_batch_size,
            "base_bytes": base_bytes,
            "last_epoch": loop.position.last_epoch,
            "device_bytes": device_bytes(),
        }
    )
    try:
        last_epoch = loop.run()
    except Stopped as stopped:
        report({"event": "stopped", "step": stopped.step})
        return EXIT_STOPPED
    finally:
        watch.listen(listening=False)
    _write_model(run, plan, loop)
    report({"event": "done", **last_epoch, "device_bytes": device_bytes()})
    return EXIT_DONE


def _build(run: RunFolder, plan: Plan, report: Reporter, stop: StopRequest) -> "TrainingLoop":
    """Import torch and make everything that training needs."""
    import torch

    from revedge import models
    from revedge.data import FrameCache
    from revedge.devices import augment, optimizer
    from revedge.devices.checkpoint import CheckpointStore, training_identity
    from revedge.devices.loop import LoopSettings, TrainingLoop

    settings = run.settings()
    torch.set_num_threads(plan.threads)
    if plan.device == "cuda":
        _start_cuda()
    frames = FrameCache.open(settings.cache)
    torch.manual_seed(augment.derive_seed(settings.seed, augment.WEIGHTS, 0))
    model = models.create(
        plan.model,
        in_shape=frames.in_shape,
        num_classes=frames.num_classes,
        timesteps=plan.timesteps,
        static=frames.static,
        strategy=plan.strategy,
        **plan.model_options,
    ).to(plan.device)
    model.set_slab_bytes(plan.slab_bytes)
    epochs = plan.epochs or 1
    began: dict[str, Any] = {}
    if settings.start:
        model, began = _begin_finish(model, RunFolder(run.path / settings.start))
        chosen = _snapping_optimizer(model, plan, frames.scale)
    else:
        chosen = optimizer.create(
            plan.optimizer, model.named_parameters(), weight_decay=plan.weight_decay
        )
    identity = training_identity(
        {
            **began,
            "model": model.config,
            "device": plan.device,
            "data": [frames.meta["frames_sha256"], frames.meta["labels_sha256"]],
            "seed": settings.seed,
            "epochs": epochs,
            "batch_size": plan.batch_size,
            "optimizer": [plan.optimizer, plan.learning_rate, plan.weight_decay, plan.warmup_steps],
            "loss": [plan.label_smoothing, plan.augment_shift],
        }
    )
    return TrainingLoop(
        model,
        chosen,
        frames,
        LoopSettings(
            seed=settings.seed,
            epochs=epochs,
            batch_size=plan.batch_size,
            micro_batch_size=plan.micro_batch_size,
            learning_rate=plan.learning_rate,
            warmup_steps=plan.warmup_steps,
            label_smoothing=plan.label_smoothing,
            augment_pixels=plan.augment_shift,
            checkpoint_every_s=settings.checkpoint_every_s,
            device=plan.device,
            update_in_backward=plan.update_in_backward,
        ),
        CheckpointStore(run.checkpoints, identity),
        report=report,
        should_stop=stop,
        before_step=functools.partial(_check_some_steps, model),
    )


def _begin_finish(model: "SpikingNet", trained: RunFolder) -> tuple["SpikingNet", dict[str, Any]]:
    """Return the folded network of the run ``trained``, and what its identity adds to that of the finish."""
    from revedge.devices.tensor_file import check_file, read_tensors
    from revedge.models.folded import fold_network

    description = json.loads(trained.model_config.read_text())
    check_file(trained.model, description["size_bytes"], description["sha256"])
    read_tensors(trained.model, model.state_dict())
    return fold_network(model), {"finish": description["sha256"]}


def _snapping_optimizer(model: "SpikingNet", plan: Plan, input_scale: float) -> "Optimizer":
    from revedge.devices.snapping_optimizer import SnappingOptimizer

    return SnappingOptimizer(plan.optimizer, model, input_scale, weight_decay=plan.weight_decay)


def _check_some_steps(model: "SpikingNet", step: int) -> None:
    """Have the first steps, and then every 500th, prove that block inputs are rebuilt bit for bit."""
    model.set_check("checksum" if step < CHECKED_STEPS or step % CHECK_EVERY == 0 else "none")


def _start_cuda() -> None:
    import torch

    from revedge.errors import DeviceError

    if not torch.cuda.is_available():
        raise DeviceError("device 'cuda' is not there (torch sees no GPU); train with --device cpu")
    torch.backends.cudnn.benchmark = False  # it would try workspaces of any size
    torch.backends.cudnn.deterministic = True
    torch.zeros(1, device="cuda")


def _device_meter(device: str) -> Any:
    if device != "cuda":
        return lambda: 0
    import torch

    return lambda: int(torch.cuda.memory_reserved())


def _set_fence(device: str, left_bytes: int, reserved_bytes: int) -> None:
    from revedge.devices import fence

    if device == "cuda":
        # RLIMIT_DATA also counts what the CUDA driver maps, so only the pool is fenced.
        fence.fence_cuda(reserved_bytes + left_bytes)
    else:
        fence.fence_data(left_bytes + HELD_BACK_BYTES)
        if not allocator.hold_back(HELD_BACK_BYTES):
            fence.fence_data(left_bytes)


def _write_model(run: RunFolder, plan: Plan, loop: "TrainingLoop") -> None:
    """Write model.safetensors and model.json, each whole or not at all."""
    from revedge.devices.atomic import replace_text
    from revedge.devices.tensor_file import write_tensors

    model: Any = loop.model
    description = {
        "format": "revedge-model",
        "version": 1,
        "config": model.config,
        "data": {"name": plan.data, "timesteps": plan.timesteps, "scale": loop.frames.scale},
    }
    if run.settings().start:
        description["numerics"] = "exact"  # folded, and on the grid
    try:
        size_bytes, digest = write_tensors(run.model, model.state_dict())
        description |= {"size_bytes": size_bytes, "sha256": digest}
        replace_text(run.model_config, json.dumps(description, indent=1) + "\n")
    except OSError as error:
        raise RevedgeError(
            f"{run.model} cannot be written ({error.strerror}); the last checkpoint is kept: free some space, "
            f"then revedge train --resume {run.path}"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
