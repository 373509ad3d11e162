"""Several processes that train one net: gradients averaged by DistributedDataParallel, or by the update itself."""

import pytest
from torch import distributed

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch has no gloo"
)

RANK = """
import os, subprocess, sys
rank, world = int(sys.argv[1]), 2
other = [subprocess.Popen([sys.executable, __file__, "1"])] if rank == 0 else []
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from revedge import engine, models
from revedge.errors import UsageError
torch.set_num_threads(1)

def make(strategy):
    torch.manual_seed(0)
    size = {"in_shape": (2, 8, 8), "num_classes": 3, "timesteps": 3, "width": 4}
    net = models.create(NAME, **size, strategy=strategy)
    for module in net.modules():  # so that all layers fire
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 2.0)
    return net.train()

x = 2 * torch.rand(3, 2, 2, 8, 8, generator=torch.Generator().manual_seed(1))[:, rank:rank + 1]

def step(net):
    net.zero_grad(set_to_none=True)
    (net(x) * torch.tensor([1.0, -2.0, 3.0])).sum().backward()

def meet():
    dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=world)

def agree(tensors):
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    both = [torch.zeros_like(flat) for _ in range(world)]
    dist.all_gather(both, flat)
    assert torch.equal(both[0], both[1])
    return flat

def leave(said):
    dist.barrier()
    assert not any(child.wait(60) for child in other)
    print(said, flush=True)
    os._exit(0)  # gloo's threads may abort a process that ends while they run (seen once)
"""

AVERAGED = """
meet()
found = {}
for strategy in ("store", "keep-spikes", "reverse"):
    net = make(strategy)
    wrapped = DistributedDataParallel(net)
    calls = dict.fromkeys(net.parameters(), 0)
    for p in calls:
        p.register_post_accumulate_grad_hook(lambda p: calls.update({p: calls[p] + 1}))
    step(wrapped)
    assert set(calls.values()) == {1}, calls
    found[strategy] = agree([p.grad for p in calls])
    own = make(strategy)
    step(own)
    mine = torch.cat([p.grad.flatten() for p in own.parameters()])
    assert not torch.equal(mine, found[strategy])
    dist.all_reduce(mine)
    assert torch.allclose(mine / world, found[strategy], rtol=1e-5, atol=1e-7 * float(mine.norm()))
assert torch.equal(found["store"], found["keep-spikes"]) and torch.equal(found["store"], found["reverse"])
leave("gradients agree")
"""

UPDATED = """
def descend(parameter, gradient):
    parameter.data.sub_(gradient, alpha=1e-2)

def together(parameter, gradient):
    dist.all_reduce(gradient)
    descend(parameter, gradient)

early = make("reverse")
engine.update_in_backward(early, descend)  # before the processes have met
meet()
start = [p.detach().clone() for p in early.parameters()]
for attempt in (lambda: step(early), lambda: engine.update_in_backward(make("reverse"), descend)):
    try:
        attempt()
    except UsageError as error:
        assert "2 processes" in str(error) and "reduces=True" in str(error), error
    else:
        raise AssertionError("each process went on with its own gradient")
assert all(map(torch.equal, start, early.parameters()))
engine.update_in_backward(early, None)

net = make("reverse")
engine.update_in_backward(net, together, reduces=True)
expected = make("reverse")
for _ in range(3):
    step(net)
    step(expected)
    for p in expected.parameters():
        together(p, p.grad)
assert torch.equal(agree(net.parameters()), agree(expected.parameters()))
leave("weights agree")
"""


@pytest.mark.parametrize("name", ["ms-resnet6", "revsresnet11"])
def test_gradients_are_averaged(name, run_python, tmp_path):
    """Under every strategy both processes get the mean, in the same bits, and every hook is called once."""
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("NAME", repr(name)) + AVERAGED)
    done = run_python(str(script), "0", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "gradients agree" in done.stdout


def test_an_update_in_backward_reduces_or_is_refused(run_python, tmp_path):
    """Weights of two processes never part: refused at once or in the first backward pass, equal where it reduces."""
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("NAME", repr("ms-resnet6")) + UPDATED)
    done = run_python(str(script), "0", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "weights agree" in done.stdout
