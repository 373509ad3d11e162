"""The finish of a training: a few epochs in which the network learns to live on its exact grid.

`RUN/exact` is a run folder of its own, begun from the network in RUN: same data, same budget, same strategies, the
normalization folded, a tenth of the learning rate. The supervisor, the fence, checkpoints and resuming are those of
every training. This module imports no torch; what the trainer does differently is in snapping_optimizer.py.
"""

import dataclasses
import json
import math

from revedge.devices.atomic import replace_text
from revedge.devices.progress import Progress
from revedge.devices.run_folder import RunFolder
from revedge.devices.supervisor import Outcome, Supervisor
from revedge.errors import UsageError
from revedge.planner.cost import SLACK_LEAST_BYTES
from revedge.planner.descent import smaller_micro_batch
from revedge.planner.plan import Plan

FOLDER = "exact"
_SHARE_OF_EPOCHS = 5
_LEAST_EPOCHS = 3
_RATE = 0.1


def exact_folder(run: RunFolder) -> RunFolder:
    """Return the folder of the finish of ``run``; it may not be there yet."""
    return RunFolder(run.path / FOLDER)


def finish(run: RunFolder, epochs: int | None = None) -> Outcome | None:
    """Begin the finish of a trained run, or continue it; return None if it is done already.

    Args:
        run: holds a trained network.
        epochs: of the finish; default: a fifth of those of the training, at least 3. Of one that was begun the number
            stands.

    Memory: the budget of the run. Raises:
        UsageError: the run holds no trained network.
        RevedgeError: as `Supervisor.train`; what was done is kept, and the next call goes on.
    """
    if not run.model.is_file() or not run.plan.is_file():
        raise UsageError(
            f"{run.path} holds no finished training to put on the exact grid; end it with: revedge train --resume "
            f"{run.path}"
        )
    folder = exact_folder(run)
    folder.make()
    lock = folder.lock()
    if folder.read_result() is not None:
        return None
    if not folder.begun:
        plan = finish_plan(Plan.load(run.plan), epochs)
        settings = dataclasses.replace(run.settings(), finish="", start="..")
        folder.begin(plan.to_toml(), settings)
    progress = Progress(Plan.load(folder.plan).budget_bytes)
    progress.say("finishing: weights on the exact grid")
    outcome = Supervisor(folder, lock, progress).train()
    if outcome.done is not None:
        replace_text(folder.result, json.dumps(result_of(outcome), indent=1) + "\n")
    return outcome


def result_of(outcome: Outcome) -> dict[str, object]:
    """Return result.json of a finish."""
    assert outcome.done is not None
    return {
        "test_accuracy": outcome.done["test_accuracy"],
        "epochs": outcome.plan.epochs,
        "budget_bytes": outcome.plan.budget_bytes,
        "predicted_peak_bytes": outcome.plan.predicted_peak_bytes,
        "measured_peak_bytes": outcome.measured_peak_bytes,
        "wall_s": round(outcome.wall_s, 3),
    }


def finish_plan(plan: Plan, epochs: int | None = None) -> Plan:
    """Return the plan of a finish: as the training's, with one more copy of the weights.

    Nothing in a folded network depends on the other samples of a batch, so a smaller micro-batch gives the same result
    and is taken where the copy would not fit. It computes in float32, where the sums of the grid are exact.
    """
    parts = {**plan.parts, "finish_bytes": plan.parts.get("weights_bytes", 0)}
    if "spread_bytes" in parts:  # it was the network before this one that was rehearsed
        parts["slack_bytes"] = SLACK_LEAST_BYTES
    micro = plan.micro_batch_size
    while sum(parts.values()) > plan.budget_bytes:
        smaller = smaller_micro_batch(plan.batch_size, micro)
        if smaller is None:
            break
        live = parts.get("activations_bytes", 0)
        parts["activations_bytes"] = math.ceil(live * smaller / micro)
        micro = smaller
    return dataclasses.replace(
        plan,
        epochs=epochs or max(_LEAST_EPOCHS, (plan.epochs or 1) // _SHARE_OF_EPOCHS),
        learning_rate=plan.learning_rate * _RATE,
        warmup_steps=min(plan.warmup_steps, 10),
        micro_batch_size=micro,
        update_in_backward=plan.update_in_backward and micro == plan.batch_size,
        precision="float32",
        parts=parts,
        predicted_peak_bytes=sum(parts.values()),
    )
