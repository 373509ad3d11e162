"""The named nets of `revedge bench` are SpikingJelly's of benchmarks/peers, layer for layer."""

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from revedge import models
from revedge.cli import step_meter
from revedge.cli.bench_rows import NAMED
from revedge.engine import GRID_BITS

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("spikingjelly", "loguru")),
    reason="SpikingJelly is not installed",
)
PAPER = {"ms_resnet34": {"name": "ms-resnet34"}}  # published with IF neurons


@pytest.fixture(scope="module")
def peers(root: Path) -> ModuleType:
    """Return the module of SpikingJelly's nets."""
    path = root / "benchmarks" / "peers" / "spikingjelly_nets.py"
    spec = importlib.util.spec_from_file_location("spikingjelly_nets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def on_grid(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
    """Round what ``module`` gives out, as our streams are rounded; straight through in the backward pass."""
    return out + (torch.round(out * 2**GRID_BITS) / 2**GRID_BITS - out).detach()


def round_streams(peers: ModuleType, theirs: nn.Module) -> None:
    """Round where ours does: after the first normalization, and at the end of what is added to a stream."""
    norms = [module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)]
    ends = [norms[0]]
    for module in theirs.modules():
        if isinstance(module, peers.Residual):
            for part in (module.skip, module.branch):
                ends += list(part.children())[-1:] if isinstance(part, nn.Module) else []
    for norm in ends:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.register_forward_hook(on_grid)


def make_pair(peers: ModuleType, name: str, timesteps: int) -> tuple[nn.Module, nn.Module]:
    """Return our net and theirs with the same weights."""
    torch.manual_seed(0)
    theirs = peers.NETS[name](timesteps).train()
    ours = models.create(
        **{**NAMED, **PAPER}[name],
        in_shape=(3, 32, 32),
        num_classes=10,
        timesteps=timesteps,
        static=True,
    ).train()
    own, other = list(ours.parameters()), list(theirs.parameters())
    assert [p.shape for p in own] == [p.shape for p in other]
    with torch.no_grad():
        for mine, its in zip(own, other, strict=True):
            mine.copy_(its)
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "timesteps"), [("iso", 2), ("vgg11", 2), ("ms_resnet18", 2), ("ms_resnet34", 1)]
)
def test_same_parameters_loss_and_gradients(peers: ModuleType, name: str, timesteps: int) -> None:
    """Same shapes in the same order; with our rounding put into theirs, the same loss and gradients.

    No spike differs at this size, so what is left is float32 sums in another order: some 60 layers, each 2**-24 times
    the root of at most 4,608 terms, 2e-4 in all. A spike that differed would change a gradient by 0.1 or more.
    """
    ours, theirs = make_pair(peers, name, timesteps)
    round_streams(peers, theirs)
    image, label = peers.images(2)
    losses = [cross_entropy(net(image), label) for net in (ours, theirs)]
    for loss in losses:
        loss.backward()
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), abs=1e-6)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        assert float((mine.grad - its.grad).norm()) <= 2e-4 * float(its.grad.norm())


def test_batch_is_that_of_the_bench(peers: ModuleType) -> None:
    """Both libraries see the same images and labels."""
    from revedge.cli.step_child import _batch

    own = _batch((3, 32, 32), {"static": True, "num_classes": 10, "timesteps": 8}, 4)
    assert all(torch.equal(mine, its) for mine, its in zip(own, peers.images(4), strict=True))


@pytest.mark.parametrize("mode", ["stored", "memopt"])
def test_a_step_of_theirs_is_measured_by_our_meter(root: Path, mode: str) -> None:
    """The peer's process prints a row with the keys of ours, and imports nothing of revedge."""
    script = root / "benchmarks" / "peers" / "spikingjelly_step.py"
    words = [step_meter.__file__, "--net", "iso", "--mode", mode, "--timesteps", "2"]
    done = subprocess.run(
        [sys.executable, str(script), *words, "--batch", "1", "--repeats", "1"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert (row["library"], row["net"], row["strategy"]) == ("spikingjelly", "iso", mode)
    assert row["tracked_peak_bytes"] > row["weights_bytes"] == 341752
    assert row["anon_peak_bytes"] > 0
    assert row["cpu_s"] > 0
