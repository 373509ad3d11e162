"""A search among what can be done to a module of the user's. Free of torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from revedge.planner import ladder
from revedge.planner.request import Request
from revedge.planner.trace_client import TraceClient
from revedge.user_code import is_user_model


def fitted(request: Request, families: Mapping[str, list[str]], tracer: TraceClient) -> Request:
    """Return ``request`` without ways of saving memory that a model of the user's does not have.

    What does not fit in runs is trained by ordinary autograd, whatever the strategy says: where nothing does, "store"
    is the only one. Parameters that are used twice, or by no run, cannot be updated in the backward pass.

    Raises:
        UsageError: the model cannot be made, or has not what was asked for.
    """
    climbed = ladder.build(request, families)
    rungs = climbed.rungs if request.runs else (climbed.least,)
    for rung in rungs:
        if not is_user_model(rung.model):
            continue
        micro, optimizer = request.micro_batches()[-1], request.optimizers()[0]
        way = request.ways(micro)[0]
        about = tracer.about(
            request.setting(
                rung.model,
                rung.options,
                rung.timesteps,
                micro,
                optimizer,
                dataclasses.replace(way, update_in_backward=False),
            )
        )
        fixed: dict[str, Any] = {}
        if not about["updates"] and request.update_in_backward is None:
            fixed["update_in_backward"] = False
        if not about["runs"] and not request.runs:
            fixed |= {
                "strategy": request.strategy or "store",
                "slab_bytes": request.slab_bytes or 0,
            }
        request = dataclasses.replace(request, **fixed)
    return request
