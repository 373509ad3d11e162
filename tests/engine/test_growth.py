"""The process that trains does not grow from step to step."""

import json

WARM_STEPS, STEPS = 3, 30
PAGE_BYTES = 4096
# A step that leaves a page behind, or 4096 bytes of small objects, grows the process by so much. The smallest tensor
# of these nets, the bits of one unit, has 2 * 4 * 16 * 16 * 16 / 8 bytes: one page.
LEAK_BYTES = (STEPS - WARM_STEPS) * PAGE_BYTES

CHILD = f"""
import gc
import json
from revedge.allocator import return_freed_memory, trim
return_freed_memory()
import torch
from torch.nn import functional as F
from revedge import models
from revedge.cli.step_meter import rss_anon_bytes
from revedge.engine import update_in_backward

torch.set_num_threads(1)


def train(net, steps):
    x, labels = torch.rand(2, 4, 2, 16, 16), torch.arange(4)
    for _ in range(steps):
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), labels).backward()
    gc.collect()
    trim()  # pages that malloc holds without a block on them
    return rss_anon_bytes()


def build(name):
    return models.create(name, in_shape=(2, 16, 16), num_classes=4, timesteps=2, width=16, depth=4)


train(build("ms-resnet6"), 10)  # what Python and torch set up once
found = {{}}
for name in ("ms-resnet6", "revsresnet11", "resnet18"):
    net = build(name)
    for strategy, slab_bytes, update in (
        ("store", None, False), ("keep-conv", None, False), ("keep-spikes", 16384, False),
        ("reverse", None, False), ("reverse", 16384, True),
    ):
        net.set_strategy(strategy)
        net.set_slab_bytes(slab_bytes)
        update_in_backward(net, (lambda p, g: p.data.sub_(g, alpha=1e-3)) if update else None)
        before = train(net, {WARM_STEPS})
        found[f"{{name}} {{strategy}} {{slab_bytes}} {{update}}"] = train(net, {STEPS - WARM_STEPS}) - before
print(json.dumps(found))
"""


def test_thirty_steps_take_no_more_than_three(run_python):
    """Anonymous bytes after step 30 are those after step 3, up to less than the smallest tensor of each step."""
    done = run_python("-c", CHILD, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    assert len(grown) == 15
    assert max(grown.values()) < LEAK_BYTES, grown
