"""The promise, row by row: every model, in every mode, cut in every way, under every strategy.

Within one way of cutting, all strategies give the same bits: gradients, logits, running statistics. So do spans of
time, with all membranes or few, and updates in the backward pass. Another way of cutting calls other convolutions,
which may sum in another order; their results stay within a derived bound. (No bound would hold for a spike that flips;
no membrane of these nets comes that close to its threshold.)
"""

import math
from collections.abc import Iterator

import pytest
import torch
from engine_checks import PLAIN_TOLERANCE, check_close, digest, enliven, train_step
from torch import Tensor
from torch.nn import Parameter

from revedge import models
from revedge.engine import STRATEGIES, Branch, update_in_backward
from revedge.engine.in_vain import why_nothing_to_cut
from revedge.models import SpikingNet, spiking_units

T, B = 3, 2
# Planes are numbered t * B + b: chunks of 3 end within a time step, chunks of 4 behind one.
PLANES_PER_CHUNK = {"whole": T * B, "samples": 3, "time steps": 2 * B, "slabs of channels": T * B}
SLAB_CHANNELS = 3
# Spans end where chunks do: chunks of two time steps leave two spans of the three.
CUT_IN_SPANS, SPANS = "time steps", 2
# Strategy, spans, membranes that stand, whether weights are updated (here: spoilt) in the backward pass.
WAYS = (
    ("keep-spikes", SPANS, None, False),
    ("reverse", SPANS, 1, True),
    ("invert", None, None, True),
)
MODES = ("batch norm", "dropout", "autocast")

# The weight gradient of each chunk is rounded to bfloat16, by 2**-9 of its size at most, and so is that of the whole.
# The norms of two chunks are together no more than three times that of their sum; else the gradient cancels.
AUTOCAST_TOLERANCE = 4 * 2.0**-9
# A branch output that differs in its last bit may be rounded to the neighboring multiple of 2**-14 of a stream of order
# 1, in each branch independently of the others.
GRID_STEP = 2.0**-14

LONGEST = ("revsresnet67", "revsresnet109", "resnet101")
REVERSIBLE = ("vgg5", "resnet18", "preact-resnet18")
ROWS = [(name, None) for name in models.names()] + [(name, "reversible") for name in REVERSIBLE]


def _side(name: str) -> int:
    """Pixels: as few as all halvings, and the attention, leave something of."""
    if name.startswith("vgg1") or name == "plif-net8" or name.endswith("former-2-256"):
        return 32
    dvs = ("revsresnet24", "ms-resnet20", "plif-net7")
    return 16 if name in dvs or "former" in name else 8


def _net(name: str, **options) -> SpikingNet:
    """A model with few channels, all layers of which fire; the longest are shortened."""
    shape = (2, _side(name), _side(name))
    size = {"width": 16, "heads": 1} if "former" in name else {"width": 8}
    size |= {"depth": 8} if name in LONGEST else {}
    torch.manual_seed(0)
    net = models.create(name, in_shape=shape, num_classes=4, **{"timesteps": T, **size, **options})
    enliven(net)
    return net


def _input(net: SpikingNet) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand((net.timesteps, B, *net.in_shape), generator=generator)


def _set_mode(net: SpikingNet, mode: str) -> None:
    """Drop inputs of every second operator, or none; the others are still cut into chunks."""
    units = [unit for _, unit in spiking_units(net) if unit.op is not None]
    for index, unit in enumerate(units):
        unit.dropout = 0.3 if mode == "dropout" and index % 2 else 0.0


Tensors = dict[str, Tensor]


def _step(
    net: SpikingNet, state: Tensors, *, autocast: bool, update: bool = False
) -> tuple[Tensors, Tensors]:
    """Gradients with the logits, and statistics, of one step from ``state``; a parameter's hook is called once.

    With ``update`` a weight becomes NaN as soon as its gradient is there, and no hook is called.
    """
    net.load_state_dict(state)
    update_in_backward(net, _spoil if update else None)
    calls: dict[Tensor, int] = dict.fromkeys(() if update else net.parameters(), 0)

    def count(parameter: Tensor) -> None:
        calls[parameter] += 1

    hooks = [p.register_post_accumulate_grad_hook(count) for p in calls]
    torch.manual_seed(4)

    def forward(
        net: SpikingNet, x: Tensor
    ) -> Tensor:  # the backward pass stands outside, as it should
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return net(x)

    gradients = train_step(net, _input(net), forward)
    for hook in hooks:
        hook.remove()
    assert set(calls.values()) <= {1}
    update_in_backward(net, None)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    counts = [name for name in buffers if name.endswith("num_batches_tracked")]
    assert all(int(buffers.pop(name)) == 1 for name in counts)
    return gradients, buffers


def _spoil(parameter: Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient.clone()
    parameter.data.fill_(math.nan)


def _ways(net: SpikingNet, state: Tensors, *, autocast: bool) -> Iterator[tuple[str, str]]:
    """Digests of one step in each of `WAYS`, which goes back in spans where anything can."""
    can_be_cut = why_nothing_to_cut(net.runs()) is None
    for strategy, spans, membranes, update in WAYS:
        net.set_strategy(strategy, check="checksum")
        net.set_span_count(spans, membranes=membranes)
        for run in net.runs():
            run.most_spans = 1
        gradients, statistics = _step(net, state, autocast=autocast, update=update)
        most = max(run.most_spans for run in net.runs())
        assert most == (SPANS if spans and can_be_cut else 1)
        yield digest(gradients), digest(statistics)
    net.set_span_count(None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "neuron"), ROWS)
def test_exactness(name, neuron, mode, monkeypatch):
    """Strategies agree to the bit in every cut, cuts within a bound; hooks are called once, statistics move once."""
    net = _net(name, neuron=neuron)
    _set_mode(net, mode)
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    monkeypatch.setattr("revedge.engine.output.LEAST_CHANNELS", SLAB_CHANNELS)
    roundings = sum(isinstance(module, Branch) and module.on_grid for module in net.modules())
    tolerance = AUTOCAST_TOLERANCE if mode == "autocast" else PLAIN_TOLERANCE
    whole: tuple[Tensors, Tensors] | None = None
    gradients: Tensors = {}
    for cut, planes in PLANES_PER_CHUNK.items():
        for place in ("signal", "span"):
            monkeypatch.setattr(f"revedge.engine.{place}.planes_per_chunk", lambda _, n=planes: n)
        net.set_slab_bytes(1 if cut == "slabs of channels" else None)
        found = {}
        for strategy in STRATEGIES:
            net.set_strategy(strategy, check="checksum")
            found[strategy] = _step(net, state, autocast=mode == "autocast")
        digests = {strategy: (digest(g), digest(s)) for strategy, (g, s) in found.items()}
        if cut == CUT_IN_SPANS:
            others = _ways(net, state, autocast=mode == "autocast")
            digests |= dict(zip(WAYS, others, strict=True))
        assert len(set(digests.values())) == 1, (cut, digests)
        gradients, statistics = found["store"]
        whole = whole or (gradients, statistics)
        steps = math.sqrt(roundings) * GRID_STEP if cut == "slabs of channels" else 0.0
        check_close(gradients, whole[0], tolerance + steps)
        check_close(statistics, whole[1], tolerance + steps)
        assert all(float(g.abs().sum()) > 0 for g in gradients.values())
    _set_mode(net, "batch norm")
    plain, _ = _step(net, state, autocast=False)
    assert (digest(plain) == digest(gradients)) == (mode == "batch norm")


DEEP = {
    "ms-resnet6": {"depth": 16},
    "revsresnet11": {"depth": 16},
    "spikingformer-2-384": {"depth": 16},
    "revsformer-2-384": {"depth": 16},
    "resnet18": {"depth": 16},
    "vgg19": {"neuron": "reversible"},
}


@pytest.mark.parametrize("slab_bytes", [None, 1])
@pytest.mark.parametrize("name", DEEP)
def test_sixteen_blocks_eight_steps(name, slab_bytes):
    """At 16 blocks and T = 8 the SHA-256 of gradients, logits and statistics is one for all strategies."""
    net = _net(name, timesteps=8, **DEEP[name])
    assert len(list(spiking_units(net))) >= 16
    net.set_slab_bytes(slab_bytes)
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    digests = set()
    for strategy in STRATEGIES:
        net.set_strategy(strategy, check="none")
        gradients, statistics = _step(net, state, autocast=False)
        digests.add((digest(gradients), digest(statistics)))
    assert len(digests) == 1
