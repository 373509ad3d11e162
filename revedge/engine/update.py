"""Update in backward: a parameter is updated, and its gradient freed, as soon as its block's backward is done.

Memory: instead of a gradient for every parameter, those of one unit. The updated weights are not read again in that
backward pass, so the gradients are those of the weights of the forward pass, to the last bit.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor, distributed, nn

from revedge.engine.run import Run
from revedge.engine.vjp import Update
from revedge.errors import UsageError


@runtime_checkable
class _Holder(Protocol):
    """What holds runs that are no submodules: the forward that `apply` puts in the place of a module's own."""

    def set_update(self, update: Update | None) -> None: ...


def update_in_backward(model: nn.Module, update: Update | None, *, reduces: bool = False) -> None:
    """Call ``update(parameter, gradient)`` for every parameter of the model's runs during the backward pass.

    ``parameter.grad`` then stays None. For one forward and one backward pass per optimizer step: gradients cannot be
    accumulated over micro-batches, nor clipped by their global norm. Parameters that no run holds (of a model under
    `apply`, or beside its runs) get their ``grad`` as ever, and are the optimizer's to update.

    Where several processes train one model, DistributedDataParallel sees no gradient to average. Let ``update`` call
    ``torch.distributed.all_reduce`` on it, say ``reduces=True``, and do without the wrapper: gradients come in the same
    order in all processes.

    Args:
        model: a `SpikingNet`, a model under `apply`, or any module with runs in it.
        update: takes the parameter and its gradient, which it may overwrite; None ends it.
        reduces: ``update`` itself brings together the gradients of all processes, or each trains a model of its own.

    Raises:
        UsageError: the model has no run, or one of its parameters is used twice; without ``reduces`` torch.distributed
            holds several processes, now or in a backward pass.
    """
    modules = list(model.modules())
    runs = [module for module in modules if isinstance(module, Run)]
    forwards = [module.__dict__.get("forward") for module in modules]
    holders = [forward for forward in forwards if isinstance(forward, _Holder)]
    if not runs and not holders:
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
    if update is not None and not reduces:
        _refuse_several_processes()
        update = _of_one_process(update)
    for run in runs:
        run.update = update
    try:
        for holder in holders:
            holder.set_update(update)
    except UsageError:
        for holder in holders:
            holder.set_update(None)
        raise


def _of_one_process(update: Update) -> Update:
    def checked(parameter: nn.Parameter, gradient: Tensor) -> None:
        _refuse_several_processes()  # they may have met after the update was set
        update(parameter, gradient)

    return checked


def _refuse_several_processes() -> None:
    if not distributed.is_available() or not distributed.is_initialized():
        return
    count = distributed.get_world_size()
    if count > 1:
        raise UsageError(
            f"torch.distributed holds {count} processes, and update_in_backward would apply each one's own gradient, "
            "so that their weights part; all_reduce it in update and give reduces=True, or use optimizer.step()"
        )
