"""Spans of time that would cut nothing: known by formulas, as the engine does it, and refused where asked for."""

import dataclasses
from typing import Any

import pytest
import torch
from test_form import by_formulas
from test_way import request

from revedge import models
from revedge.errors import UsageError
from revedge.planner.setting import Setting

SETTING = Setting(
    model="ms-resnet6", model_options={"width": 8}, in_shape=(2, 8, 8), num_classes=4, timesteps=7, batch_size=2,
    micro_batch_size=2, strategy="reverse", span_count=3, chunk_bytes=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 3),
        ({"membrane_count": 1}, 3),
        ({"span_count": 99, "strategy": "keep-spikes"}, 7),
        ({"chunk_bytes": None}, 1),
        ({"strategy": "store"}, 1),
        ({"span_count": None}, 1),
        ({"model": "vgg5"}, 1),
        ({"model": "revsresnet11"}, 3),
    ],
)
def test_formulas_know_how_many_spans_there_are(changes: dict[str, Any], most: int) -> None:
    """As many as a step of the engine has."""
    setting = dataclasses.replace(SETTING, **changes)
    assert by_formulas(setting).most_spans == most
    net = models.create(
        setting.model,
        in_shape=setting.in_shape,
        num_classes=4,
        timesteps=7,
        **setting.model_options,
    )
    net.set_strategy(str(setting.strategy))
    net.set_span_count(setting.span_count, membranes=setting.membrane_count)
    net.set_chunk_bytes(setting.chunk_bytes)
    net.train()(torch.rand(7, 2, *setting.in_shape)).sum().backward()
    assert max(run.most_spans for run in net.runs()) == most


def test_spans_are_asked_for_with_strategies_that_have_them() -> None:
    """Others are refused if named and not chosen if not; one of reversible neurons needs them."""
    assert request(span_count=8).strategies() == ["keep-spikes", "reverse"]
    assert "store" in request(span_count=0).strategies()
    with pytest.raises(UsageError, match="--spans 8: --strategy store keeps what spans would make"):
        request(span_count=8, strategy="store")
    with pytest.raises(UsageError, match="--strategy invert is of reversible neurons"):
        request(strategy="invert")
    assert request(strategy="invert", model="net.py:build").strategies() == ["invert"]
    assert request(strategy="invert", model_options={"neuron": "reversible"}).strategies() == [
        "invert"
    ]
