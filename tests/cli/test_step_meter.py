"""The meter that every library is measured with: exact for tensors, and what the kernel says for the process."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from revedge.cli import step_meter
from revedge.cli.step_meter import anonymous_peak, cpu_seconds, tracked_peaks

MIB = 2**20


class Doubling(nn.Module):
    """y = w * x, twice; sizes are chosen so that every storage can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(MIB // 4))


def test_tracked_peak_is_the_sum_of_live_storages():
    """Storages are counted once each, views not again, and no longer when they are gone."""
    net = Doubling()

    def step() -> None:
        first = torch.empty(MIB // 4)
        second = torch.empty(2 * MIB // 4)
        view = second.view(2, -1)
        del first
        third = torch.empty(MIB // 2 // 4)
        del second, view, third

    found = tracked_peaks(step, net)
    assert found["tracked_peak_bytes"] == 3 * MIB
    assert found["activation_peak_bytes"] == 3 * MIB
    assert found["weights_bytes"] == MIB
    assert found["gradients_bytes"] == 0


def test_activations_are_without_gradients():
    """The gradient that stays counts as tracked, and not as an activation; a view of a weight is neither."""
    net = Doubling()
    x = torch.ones(MIB // 4)

    def step() -> None:
        net.w.grad = None
        held = net.w.detach()
        y = held * x  # 1 MiB, dropped before the gradient comes
        del y
        net.w.grad = x + 1.0
        z = x + 2.0  # stands beside the gradient
        del held, z

    found = tracked_peaks(step, net)
    assert found["tracked_peak_bytes"] == 2 * MIB
    assert found["activation_peak_bytes"] == MIB
    assert found["gradients_bytes"] == MIB


def test_weights_updated_in_a_step_are_not_tracked():
    """An update in place gives the weights' storages to operators, and a buffer's too: what counts is the gradient."""
    net, mean = Doubling(), torch.zeros(MIB // 4)
    net.register_buffer("mean", mean)

    def step() -> None:
        gradient = torch.ones(MIB // 2 // 4)
        net.w.data[: MIB // 2 // 4].sub_(gradient.mul_(0.5))
        mean.add_(1.0)

    found = tracked_peaks(step, net)
    assert found["tracked_peak_bytes"] == found["activation_peak_bytes"] == MIB // 2
    assert found["weights_bytes"] == 2 * MIB


def test_the_address_of_a_weight_does_not_come_again():
    """A weight that a step replaces leaves its address to none of the storages that count."""
    net = Doubling()

    def step() -> None:
        net.w.data = torch.ones(1)
        many = [torch.ones(MIB // 64 // 4) for _ in range(64)]
        del many

    found = tracked_peaks(step, net)
    assert found["tracked_peak_bytes"] == MIB + 4
    assert found["weights_bytes"] == MIB


def test_anonymous_peak_sees_what_is_gone_at_the_end():
    """48 MiB that are written and given back stand in the peak."""
    found: dict[str, int] = {}
    with anonymous_peak(found):
        block = bytearray(48 * MIB)
        block[::4096] = b"\1" * (48 * MIB // 4096)
        torch.ones(1000).sum()
        cpu_seconds(lambda: sum(range(200_000)), 1)
        del block
    assert 48 * MIB <= found["anon_peak_bytes"] < 56 * MIB


def test_cpu_seconds_is_the_least():
    """Of several steps the quickest counts."""
    loops = iter([3_000_000, 1000, 3_000_000])
    assert cpu_seconds(lambda: sum(range(next(loops))), 3) < 0.01


def test_the_meter_is_free_of_revedge():
    """A peer loads it by its path, and gets nothing of ours with it."""
    path = Path(step_meter.__file__)
    text = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('meter', {str(path)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.tracked_peaks(lambda: None, __import__('torch').nn.Linear(1, 1))\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'revedge']\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", text], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
