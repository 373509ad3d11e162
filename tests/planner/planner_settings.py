"""Configurations that predictions are tested with, and how a plan is made of one."""

import dataclasses
import os

from revedge.planner import base
from revedge.planner.cost import predict
from revedge.planner.plan import Plan
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient

# Predicted over measured, whole process; below 0 the promise is broken.
LARGEST_EXCESS = 0.05
THREADS = len(os.sched_getaffinity(0))  # as `revedge plan` has it, so that one base is measured
SETTINGS = [
    Setting(
        model=model,
        model_options=options,
        in_shape=in_shape,
        num_classes=10,
        static=static,
        timesteps=timesteps,
        batch_size=batch,
        micro_batch_size=micro,
        strategy=strategy,
        slab_bytes=slab,
        update_in_backward=batch == micro and slab is not None,
        optimizer=optimizer,
        threads=THREADS,
    )
    for model, options, in_shape, static, timesteps, batch, micro, strategy, slab, optimizer in [
        ("revsresnet11", {}, (2, 16, 16), False, 8, 32, 32, "reverse", 2 << 20, "adamw"),
        (
            "ms-resnet10",
            {"neuron": "plif"},
            (2, 34, 34),
            False,
            3,
            8,
            4,
            "keep-spikes",
            1 << 20,
            "sgd",
        ),
        ("vgg5", {}, (3, 32, 32), True, 4, 7, 7, "keep-conv", None, "adamw"),
        ("revsresnet19", {"width": 8}, (1, 12, 12), False, 16, 16, 16, "store", None, "adamw"),
        ("vgg5", {"neuron": "reversible"}, (2, 16, 16), False, 2, 1, 1, "invert", 1 << 18, "adamw"),
        (
            "revsformer-2-256",
            {"width": 64},
            (2, 64, 64),
            False,
            4,
            8,
            8,
            "keep-conv",
            None,
            "adamw",
        ),
        ("plif-net7", {"width": 32}, (2, 64, 64), False, 4, 8, 8, "keep-spikes", 1 << 19, "adamw"),
        # 604 tensors of weights whose gradients wait for the optimizer.
        ("ms-resnet10", {"depth": 100}, (3, 16, 16), False, 1, 2, 2, "store", None, "adamw"),
    ]
]


def plan_for(setting: Setting, client: TraceClient, budget_bytes: int = 4 << 30) -> Plan:
    parts = predict(setting, base.measure(setting.threads), client).parts
    values = {each.name: getattr(setting, each.name) for each in dataclasses.fields(setting)}
    return Plan(
        **values,
        data="random",
        budget_bytes=budget_bytes,
        predicted_peak_bytes=sum(parts.values()),
        parts=parts,
    )
