"""Networks of the user's, made once for all ways of saving memory that are traced. Runs in the tracing child."""

import dataclasses
import functools
import json

from revedge.engine import update_in_backward
from revedge.errors import UsageError
from revedge.models.net import SpikingNet
from revedge.planner.setting import Setting
from revedge.planner.step import network
from revedge.user_code import is_user_model

_MOST_NETS = 2


def kept_net(setting: Setting) -> SpikingNet | None:
    """Return a network of the user's, which takes longer to make (`apply`) than to trace; None of one of ours.

    Raises:
        UsageError: as `revedge.models.create`.
    """
    if not is_user_model(setting.model):
        return None
    same = dataclasses.replace(  # whatever the network does not depend on
        setting,
        strategy="store",
        slab_bytes=None,
        span_count=None,
        membrane_count=None,
        chunk_bytes=None,
        update_in_backward=False,
        batch_size=1,
        micro_batch_size=1,
        precision="float32",
        optimizer="adamw",
        device="cpu",
        threads=1,
    )
    return _made(same.key())


@functools.lru_cache(maxsize=_MOST_NETS)
def _made(key: str) -> SpikingNet:
    return network(Setting.from_json(json.loads(key)), "meta")


def as_made(net: SpikingNet) -> None:
    """Take back what a trace has done to ``net``, but for its strategy and sizes, which each trace sets."""
    net.train()
    for run in net.runs():
        run.__dict__.pop("run_forward", None)
    for parameter in net.parameters():
        parameter.grad = None
    try:
        update_in_backward(net, None)
    except UsageError:  # it has no runs
        return
