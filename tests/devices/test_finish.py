"""The finish of a training: on the grid, inside the budget, resumable to the bit."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from revedge import models
from revedge.devices.finish import exact_folder, finish, finish_plan
from revedge.devices.run_folder import RunFolder
from revedge.devices.snapping_optimizer import SnappingOptimizer
from revedge.devices.tensor_file import read_tensors
from revedge.errors import UsageError
from revedge.models.folded import fold_network
from revedge.models.snapping import levels_of, snap_layers
from revedge.planner.cost import SLACK_LEAST_BYTES

from .conftest import MakeRun, make_plan

DEADLINE_S = 120.0


def _train(run: RunFolder, env: dict[str, str]) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "revedge.cli.main", "train", "--resume", str(run.path), "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=env, stdout=pipe, stderr=pipe, text=True)


def _result(process: "subprocess.Popen[str]") -> dict:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def _digest(run: RunFolder) -> str:
    return hashlib.sha256(exact_folder(run).model.read_bytes()).hexdigest()


def _ask_for_finish(run: RunFolder) -> RunFolder:
    settings = dataclasses.replace(run.settings(), finish="exact")
    run.begin(run.plan.read_text(), settings)
    return run


def test_finish_is_on_the_grid_and_resumes_to_the_same_bits(
    make_run: MakeRun, child_env: dict[str, str], tmp_path: Path
) -> None:
    """A trained run whose finish is asked for, whole, and killed in the middle and resumed."""
    run = make_run("trained", epochs=2)
    trained = _result(_train(run, child_env))
    shutil.copytree(run.path, tmp_path / "cut")
    result = _result(_train(_ask_for_finish(run), child_env))
    assert result["test_accuracy"] == trained["test_accuracy"]
    assert result["exact"]["measured_peak_bytes"] < result["exact"]["budget_bytes"]
    assert result["exact"]["epochs"] == 3
    _is_on_the_grid(run)
    cut = _ask_for_finish(RunFolder(tmp_path / "cut"))
    process = _train(cut, child_env)
    until = time.monotonic() + DEADLINE_S
    while not list(exact_folder(cut).checkpoints.glob("step-*[4-9].json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not exact_folder(cut).result.exists()
    again = _result(_train(cut, child_env))
    assert again["exact"]["test_accuracy"] == result["exact"]["test_accuracy"]
    assert _digest(cut) == _digest(run)
    assert finish(cut) is None  # done: nothing is trained again


def _is_on_the_grid(run: RunFolder) -> None:
    description = json.loads(exact_folder(run).model_config.read_text())
    assert description["numerics"] == "exact"
    net = fold_network(models.create(**description["config"]))
    read_tensors(exact_folder(run).model, net.state_dict())
    for layer in snap_layers(net, description["data"]["scale"]):
        levels = levels_of(layer, layer.weight, layer.bias)
        scaled = layer.weight.detach().double() * layer.weight_factor
        up = torch.exp2(levels.bits).reshape([-1] + [1] * (scaled.dim() - 1))
        assert float((scaled * up - levels.weight).abs().max()) < 1e-4


def test_the_network_holds_snapped_weights_while_latent_ones_move() -> None:
    """Steps too small to reach the next grid point change nothing yet, and are not lost."""
    torch.manual_seed(0)
    net = fold_network(
        models.create("vgg5", width=2, in_shape=(2, 8, 8), num_classes=2, timesteps=2)
    )
    optimizer = SnappingOptimizer("sgd", net, 1.0, weight_decay=0.0)
    layer = snap_layers(net, 1.0)[1]
    step_size = float(2.0 ** -levels_of(layer, layer.weight, layer.bias).bits[0])
    before = layer.weight.detach().clone()
    changed: list[Tensor] = []
    for _ in range(4):
        layer.weight.grad = torch.zeros_like(before)
        layer.weight.grad[0, 0, 0, 0] = 0.1 * step_size
        optimizer.step(1.0)
        optimizer.zero_grad()
        assert layer.weight.grad is None
        changed.append((layer.weight.detach() - before)[0, 0, 0, 0])
    assert float(changed[0]) in (0.0, -step_size)
    assert float(changed[-1]) in (-step_size, -2 * step_size)
    names = optimizer.state_tensors()
    assert "latent.body.0.branches.0.units.0.op.weight" in names
    assert len(names) == 2 * 2 * len(snap_layers(net, 1.0))


def test_updates_in_backward_give_the_same_bits() -> None:
    """Gradients handed over one by one, or all at the end: the same latent and snapped weights."""
    found = []
    for at_once in (False, True):
        torch.manual_seed(0)
        options = {"in_shape": (2, 8, 8), "num_classes": 2, "timesteps": 2}
        net = fold_network(models.create("vgg5", width=2, **options))
        optimizer = SnappingOptimizer("adamw", net, 1.0, weight_decay=0.1)
        for parameter in (p for p in net.parameters() if p.requires_grad):
            gradient = torch.randn_like(parameter)
            if at_once:
                optimizer.update_now(parameter, gradient, 0.01)
            else:
                parameter.grad = gradient
        optimizer.step(0.01)
        found.append({**optimizer.state_tensors(), **net.state_dict()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_plan_of_a_finish_fits_the_same_budget() -> None:
    """One copy of the weights more; where that does not fit, a smaller micro-batch."""
    parts = {"base_bytes": 300, "weights_bytes": 40, "activations_bytes": 600}
    plan = make_plan(
        parts=parts, predicted_peak_bytes=940, budget_bytes=1000, epochs=20, micro_batch_size=8
    )
    roomy = finish_plan(plan)
    assert (roomy.predicted_peak_bytes, roomy.micro_batch_size, roomy.epochs) == (980, 8, 4)
    assert roomy.learning_rate == pytest.approx(plan.learning_rate / 10)
    tight = finish_plan(dataclasses.replace(plan, budget_bytes=945), epochs=7)
    assert (tight.micro_batch_size, tight.epochs) == (4, 7)
    assert tight.predicted_peak_bytes == 300 + 40 + 300 + 40
    # What was rehearsed is the network before it: the finish has a slack again.
    parts["spread_bytes"] = 10
    plan = dataclasses.replace(plan, parts=parts, predicted_peak_bytes=950, budget_bytes=1 << 30)
    assert finish_plan(plan).parts["slack_bytes"] == SLACK_LEAST_BYTES


def test_a_run_without_a_network_is_refused(make_run: MakeRun) -> None:
    """The command that ends the training is named."""
    with pytest.raises(UsageError, match="revedge train --resume"):
        finish(make_run("begun"))
