"""Update in backward: a parameter is updated, and its gradient freed, as soon as its block's backward is done.

Memory: instead of a gradient for every parameter, those of one unit. The updated weights are not read again in that
backward pass, so the gradients are those of the weights of the forward pass, to the last bit.
"""

from torch import nn

from revedge.engine.run import Run
from revedge.engine.vjp import Update
from revedge.errors import UsageError


def update_in_backward(model: nn.Module, update: Update | None) -> None:
    """Call ``update(parameter, gradient)`` for every parameter of the model's runs during the backward pass.

    ``parameter.grad`` then stays None. For one backward pass per optimizer step: gradients cannot be accumulated over
    micro-batches, nor clipped by their global norm.

    Args:
        model: a `SpikingNet`, or any module with runs in it.
        update: takes the parameter and its gradient, which it may overwrite; None ends it.

    Raises:
        UsageError: the model has no run, or one of its parameters is used twice.
    """
    runs = [module for module in model.modules() if isinstance(module, Run)]
    if not runs:
        raise UsageError(
            f"{type(model).__name__} has no run of revedge, so nothing can be updated in its backward pass; "
            "update it with optimizer.step() after backward"
        )
    seen: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if update is not None and parameter in seen:
            raise UsageError(
                f"{name} and {seen[parameter]} are one parameter, whose gradient is complete only after backward; "
                "it cannot be updated in the backward pass: use optimizer.step()"
            )
        seen[parameter] = name
    for run in runs:
        run.update = update
