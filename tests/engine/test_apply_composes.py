"""`apply` beside the rest of torch: autocast, hooks, clipping, data-parallel training, compiled parts."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from apply_nets import STYLES, Block, X, assert_close, bits, make, step
from torch import Tensor, nn

from revedge.engine import STRATEGIES, apply, update_in_backward
from revedge.errors import UsageError
from revedge.neurons import LIFNode, reset_net


def _autocast_step(net: nn.Module) -> dict[str, Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reset_net(net)
        net.zero_grad(set_to_none=True)
        x = X.clone().requires_grad_()
        torch.manual_seed(7)
        out = net(x).float()
    (out * torch.arange(out.numel()).view(out.shape).cos()).sum().backward()
    assert x.grad is not None
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"loss-out": out.detach(), "input": x.grad, **gradients}


@pytest.mark.parametrize("style", STYLES)
def test_autocast(style):
    """Every strategy gives the same bits under autocast, other ones than without, and float32 gradients."""
    found = set()
    for strategy in STRATEGIES:
        net = make(style)
        apply(net, strategy, check="checksum")
        gradients = _autocast_step(net)
        assert {g.dtype for g in gradients.values()} == {torch.float32}
        found.add(bits(net, gradients))
    assert len(found) == 1
    net = make(style)
    apply(net, "store")
    assert bits(net, step(net)) not in found


def test_hooks_of_parameters_fire_once():
    """Backward and post-accumulate hooks, on every parameter, once per backward pass."""
    net = make("residual")
    apply(net, "reverse", grid=True)
    names = dict(net.named_parameters())
    calls: dict[str, list[str]] = {name: [] for name in names}
    for name, parameter in names.items():
        parameter.register_hook(lambda g, name=name: calls[name].append("hook"))
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: calls[name].append("post")
        )
    step(net)
    assert all(made == ["hook", "post"] for made in calls.values()), calls


def _descend(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.data.sub_(gradient, alpha=1e-2)


def _train(net: nn.Module, steps: int = 2) -> dict[str, Any]:
    """Weights and statistics after some steps; a gradient that is left is applied after backward."""
    for _ in range(steps):
        reset_net(net)
        net.zero_grad(set_to_none=True)
        torch.manual_seed(7)
        net(X).square().sum().backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                _descend(parameter, parameter.grad)
    return dict(net.state_dict())


@pytest.mark.parametrize("strategy", ["store", "reverse"])
@pytest.mark.parametrize("style", STYLES)
def test_updates_in_backward(style, strategy):
    """The same weights as with a step after backward, also in programs traced later; the rest keeps its grad."""
    net = make(style)
    apply(net, strategy, grid=True)
    expected = bits(net, _train(net, 4))
    net = make(style)
    apply(net, strategy, grid=True)
    updated: list[nn.Parameter] = []
    update_in_backward(net, lambda p, g: (updated.append(p), _descend(p, g))[1])
    _train(net, 2)
    net.remark = "another state of the model gets another program"
    assert bits(net, _train(net, 2)) == expected
    left = [p for p in net.parameters() if p.grad is not None]
    assert len(updated) + 4 * len(left) == 4 * len(list(net.parameters()))
    assert len(updated) > 4
    update_in_backward(net, None)
    _train(net, 1)
    assert all(p.grad is not None for p in net.parameters())


class _Tied(nn.Module):
    """One linear layer that is called twice: around a neuron, or once in a run and once beside it."""

    def __init__(self, *, beside: bool) -> None:
        super().__init__()
        self.fc, self.lif, self.beside = nn.Linear(8, 8), LIFNode(), beside

    def forward(self, x: Tensor) -> Tensor:
        s = self.lif(self.fc(x))
        return torch.einsum("tbhwi,oi->tbhwo", s, self.fc.weight) if self.beside else self.fc(s)


@pytest.mark.parametrize("beside", [False, True])
def test_a_weight_used_twice_is_not_updated_in_backward(beside):
    """Its gradient is complete only after backward: refused at once, and gradients come as ever."""
    net = _Tied(beside=beside).train()
    apply(net, "keep-spikes")
    with pytest.raises(UsageError, match=r"fc.weight is used more than once"):
        update_in_backward(net, _descend)
    net(X).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_module_hooks_are_called():
    """A module that gets a hook is called again, from the next forward pass on; the rest stays in runs."""
    net, plain = make("residual"), make("residual")
    applied = apply(net, "keep-spikes")
    step(net)
    step(plain)
    shapes: list[Any] = []
    handle = net.blocks[1].conv1.register_forward_hook(
        lambda m, args, out: shapes.append(out.shape)
    )
    assert_close(step(net), step(plain))
    assert shapes == [(6, 6, 8, 8)]
    assert "has hooks" not in str(applied.report.runs)
    assert sum(run.neurons for run in applied.report.runs) == 7
    handle.remove()
    step(net)
    assert len(shapes) == 1


def test_clipping_sees_all_gradients():
    """The norm over all parameters is that of the plain net."""
    net, plain = make("residual"), make("residual")
    apply(net, "keep-spikes")
    step(net)
    step(plain)
    ours = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    theirs = nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_shared_modules_add_up():
    """One convolution and one norm in two runs, and twice in one run, get the sum of their gradients."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Block(4), Block(4)
            self.b.conv1, self.b.conv2, self.b.bn2 = self.a.conv1, self.a.conv1, self.a.bn2

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)).mean((0, -1, -2))

    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(Net())
    for grid in (False, True):
        apply(nets[0], "reverse", grid=grid, check="checksum")
        if not grid:
            assert_close(step(nets[0]), step(nets[1]))
            assert int(nets[0].a.bn2.num_batches_tracked) == 2
            continue
        first = bits(nets[0], step(nets[0]))
        assert first[0] == bits(nets[0], step(nets[0]))[0]


DDP = """
import os, subprocess, sys
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sys.path.append(folder)
other = [subprocess.Popen([sys.executable, __file__, "1", "2", folder])] if (rank, world) == (0, 2) else []
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from apply_nets import X, assert_close, make
from revedge.engine import apply
from revedge.neurons import reset_net
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=world)
x = X[:, rank:rank + 1] if world == 2 else X
found = {}
for strategy in ("plain", "keep-spikes", "store"):
    net = make("residual")
    if strategy != "plain":
        apply(net, strategy)
    wrapped = DistributedDataParallel(net)
    calls = {}
    for name, p in net.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: calls.update({name: calls.get(name, 0) + 1}))
    for _ in range(2):
        reset_net(net)
        net.zero_grad()
        out = wrapped(x)
        (out * torch.arange(10).view(2, 5)[rank % 2].cos()).sum().backward()
    assert set(calls.values()) == {2} and len(calls) == len(list(net.parameters())), calls
    found[strategy] = {name: p.grad.clone() for name, p in net.named_parameters()}
assert_close(found["store"], found["plain"])
assert all(torch.equal(found["store"][name], g) for name, g in found["keep-spikes"].items())
total = torch.stack([g.double().sum() for g in found["store"].values()]).sum()
both = [torch.zeros_like(total) for _ in range(world)]
dist.all_gather(both, total)
assert all(bool(one == total) for one in both)
dist.barrier()
assert not any(child.wait(60) for child in other)
print("gradients agree on", world, flush=True)
os._exit(0)  # gloo's threads may abort a process that ends while they run (seen once)
"""


@pytest.mark.parametrize("world", [1, 2])
def test_data_parallel(world, run_python, tmp_path):
    """DistributedDataParallel averages the gradients of a model under apply; every hook fires once per step."""
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    done = run_python(str(script), "0", str(world), str(Path(__file__).parent), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert f"gradients agree on {world}" in done.stdout


def test_a_compiled_part_between_two_runs():
    """A module under torch.compile is called as it is; gradients are those of the plain net.

    The backend traces forward and backward as ever but has no machine code made: that takes half a minute.
    """

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x * self.weight) * 2

    def build(part: Any) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(Block(4), part, Block(4))

    net, plain = build(Scale()), build(Scale())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled: Any = torch.compile(net[1], backend="aot_eager")
        net[1] = compiled
        applied = apply(net, "keep-spikes")
        assert [run.first for run in applied.report.runs] == ["0.lif1", "2.lif1"]
        found, expected = step(net), step(plain)
    assert_close({name.replace("_orig_mod.", ""): g for name, g in found.items()}, expected)


def test_writing_into_what_a_run_gave_out():
    """`out += identity` and in-place activations behind a run work as they do behind a convolution."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.act = Block(4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out = self.block.branch(x)
            out += x
            return self.act(self.block.bn2(out.flatten(0, 1)))

    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(Net())
    apply(nets[0], "keep-spikes")
    assert_close(step(nets[0]), step(nets[1]))
