"""What a plan says, made: network, optimizer, frames and checkpoints as one `TrainingLoop`; and the network it trained.

Imported by the trainer once its allocator policy stands, because importing this imports torch.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import torch

from revedge import models
from revedge.data import FrameCache
from revedge.devices import augment, optimizer
from revedge.devices.atomic import replace_text
from revedge.devices.checkpoint import CheckpointStore, training_identity
from revedge.devices.loop import TrainingLoop
from revedge.devices.loop_settings import Event, LoopSettings
from revedge.devices.optimizer import Optimizer
from revedge.devices.run_folder import RunFolder
from revedge.devices.tensor_file import check_file, read_tensors, write_tensors
from revedge.errors import DeviceError, RevedgeError, UsageError
from revedge.models import SpikingNet
from revedge.models.user_net import UserNet
from revedge.planner.plan import Plan
from revedge.planner.precision import LEAST_CAPABILITY, require_here
from revedge.user_code import require_unchanged

CHECKED_STEPS, CHECK_EVERY = 3, 500


def make_loop(
    run: RunFolder, plan: Plan, report: Callable[[Event], None], should_stop: Callable[[], bool]
) -> TrainingLoop:
    """Return the training of ``run`` as ``plan`` has it, at its first step.

    Raises:
        DeviceError: the plan is for a GPU, and there is none.
        DataError, UsageError: as `FrameCache.open` and `models.create`; or code of the user's has changed.
    """
    settings = run.settings()
    torch.set_num_threads(plan.threads)
    if plan.device == "cuda":
        _start_cuda(plan.precision)
    else:
        require_here(plan.precision)
    frames = FrameCache.open(settings.cache)
    require_unchanged(plan.model, plan.model_sha256)
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
    model.take_sizes(plan)
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
            # Absent where it says nothing, so that older checkpoints are still of the same training.
            **({} if plan.precision == "float32" else {"precision": plan.precision}),
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
            precision=plan.precision,
            update_in_backward=plan.update_in_backward,
        ),
        CheckpointStore(run.checkpoints, identity),
        report=report,
        should_stop=should_stop,
        before_step=functools.partial(_check_some_steps, model),
    )


def _begin_finish(model: SpikingNet, trained: RunFolder) -> tuple[SpikingNet, dict[str, Any]]:
    """Return the folded network of the run ``trained``, and what its identity adds to that of the finish."""
    from revedge.models.folded import fold_network

    if isinstance(model, UserNet):
        raise UsageError(
            f"model {model.config['name']!r} is a module of its own, whose norms only its code knows; it has no exact "
            "form: return a revedge.SpikingNet from it, or export it with --numerics float"
        )
    description = json.loads(trained.model_config.read_text())
    check_file(trained.model, description["size_bytes"], description["sha256"])
    read_tensors(trained.model, model.state_dict())
    return fold_network(model), {"finish": description["sha256"]}


def _snapping_optimizer(model: SpikingNet, plan: Plan, input_scale: float) -> Optimizer:
    from revedge.devices.snapping_optimizer import SnappingOptimizer

    return SnappingOptimizer(plan.optimizer, model, input_scale, weight_decay=plan.weight_decay)


def _check_some_steps(model: SpikingNet, step: int) -> None:
    """Have the first steps, and then every 500th, prove that block inputs are rebuilt bit for bit."""
    model.set_check("checksum" if step < CHECKED_STEPS or step % CHECK_EVERY == 0 else "none")


def _start_cuda(precision: str) -> None:
    if not torch.cuda.is_available():
        raise DeviceError("device 'cuda' is not there (torch sees no GPU); train with --device cpu")
    if precision == "bfloat16" and torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        raise DeviceError(
            "precision bfloat16: this GPU has compute capability {}.{}, and it begins with {}.{}; train with "
            "--precision float32".format(*torch.cuda.get_device_capability(), *LEAST_CAPABILITY)
        )
    torch.backends.cudnn.benchmark = False  # it would try workspaces of any size
    torch.backends.cudnn.deterministic = True
    torch.zeros(1, device="cuda")


def write_model(run: RunFolder, plan: Plan, loop: TrainingLoop) -> None:
    """Write model.safetensors and model.json, each whole or not at all.

    Raises:
        RevedgeError: they cannot be written; the last checkpoint stays.
    """
    model: Any = loop.model
    description = {
        "format": "revedge-model",
        "version": 1,
        "config": model.config,
        "data": {"name": plan.data, "timesteps": plan.timesteps, "scale": loop.frames.scale},
    }
    if plan.model_sha256 is not None:
        description["code_sha256"] = plan.model_sha256  # of the user's code that makes the network
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
