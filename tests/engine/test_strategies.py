"""Whole nets: every strategy against every other, and all of them against plain autograd."""

import pytest
import torch
from engine_checks import (
    NETS,
    PLAIN_TOLERANCE,
    REVERSIBLE_TOLERANCE,
    check_close,
    digest,
    fresh_net,
    net_input,
    train_step,
)
from torch import nn
from torch.nn import functional as F

from revedge.engine import STRATEGIES
from revedge.engine.output import cut
from revedge.models import spiking_units
from revedge.models.plain import plain_forward


@pytest.mark.parametrize("name", NETS)
def test_all_strategies_give_the_same_bits(name):
    """SHA-256 of all gradients, the logits and all running statistics are equal for every strategy."""
    config = NETS[name]
    found = {}
    for strategy in STRATEGIES:
        net = fresh_net(config, strategy)
        net.set_strategy(strategy, check="checksum")
        gradients = train_step(net, net_input(config))
        found[strategy] = (digest(gradients), digest(dict(net.named_buffers())))
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("name", NETS)
def test_every_neuron_of_these_nets_takes_part(name):
    """No layer of neurons is silent in training: else the gradients that are compared here would be empty."""
    net = fresh_net(NETS[name], "store").train()
    spikes = [0.0] * len(net.state_spec())
    for index, (_, unit) in enumerate(spiking_units(net)):
        assert unit.neuron is not None

        def step(x, v, inner=unit.neuron.step, index=index):
            s, v = inner(x, v)
            spikes[index] += float(s.detach().abs().sum())
            return s, v

        object.__setattr__(unit.neuron, "step", step)
    plain_forward(net, net_input(NETS[name]))
    assert min(spikes) > 0, spikes


@pytest.mark.parametrize("name", NETS)
def test_store_equals_plain_autograd(name):
    """Forward bits equal those of the reference operators; gradients agree to rounding."""
    config = NETS[name]
    ours = train_step(fresh_net(config, "store"), net_input(config))
    plain = train_step(fresh_net(config, "store"), net_input(config), plain_forward)
    torch.testing.assert_close(ours.pop("loss-logits"), plain.pop("loss-logits"), rtol=0, atol=0)
    tolerance = REVERSIBLE_TOLERANCE if "reversible" in name else PLAIN_TOLERANCE
    check_close(ours, plain, tolerance)


@pytest.mark.parametrize("name", ["revsresnet", "ms-resnet", "resnet18", "vgg"])
def test_running_statistics_move_once(name):
    """A step counts one batch, whatever is recomputed; the statistics are those of BatchNorm2d."""
    net = fresh_net(NETS[name], "reverse")
    first = net.stem.branch_list()[0]
    conv, norm = first.unit_list()[0].op, first.norm
    assert conv is not None
    assert norm is not None
    x = net_input(NETS[name])
    train_step(net, x)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {str(m.num_batches_tracked) for m in norms} == {"tensor(1)"}

    reference = nn.BatchNorm2d(norm.num_features)
    reference(conv(x.flatten(0, 1)))
    torch.testing.assert_close(norm.running_mean, reference.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, reference.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_slabs_change_no_strategy(name, channels, monkeypatch):
    """In slabs of channels the strategies still agree, and the gradient is that of whole tensors."""
    config = NETS[name]
    whole = train_step(fresh_net(config, "store"), net_input(config))
    monkeypatch.setattr("revedge.engine.output.LEAST_CHANNELS", channels)
    found, cuts = {}, []
    monkeypatch.setattr("revedge.engine.output.cut", lambda *a: cuts.append(cut(*a)) or cuts[-1])
    for strategy in STRATEGIES:
        net = fresh_net(config, strategy)
        net.set_strategy(strategy, check="checksum")
        net.set_slab_bytes(1)
        gradients = train_step(net, net_input(config))
        found[digest(gradients), digest(dict(net.named_buffers()))] = gradients
    assert len(found) == 1
    assert any(len(slabs) > 1 for slabs in cuts)
    # A convolution of fewer output channels may sum in another order: as against plain autograd.
    check_close(next(iter(found.values())), whole, PLAIN_TOLERANCE)


def test_cuts_are_exact():
    """Slabs have at least 8 channels, multiples of 16 above that, and cover every channel once."""
    shape = torch.Size([2, 3, 40, 4, 4])  # 384 bytes a channel
    assert cut(shape, 1) == [(0, 8), (8, 16), (16, 24), (24, 32), (32, 40)]
    assert cut(shape, 384 * 15) == [(0, 15), (15, 30), (30, 40)]
    assert cut(shape, 384 * 20) == [(0, 16), (16, 32), (32, 40)]
    assert cut(shape, 384 * 39) == [(0, 32), (32, 40)]
    assert cut(shape, 384 * 40) == [(0, 40)]


@pytest.mark.parametrize(
    "name", ["revsresnet", "ms-resnet", "revsresnet-plif-static", "resnet19-static-plif", "vgg"]
)
def test_chain_equals_its_runs_one_by_one(name):
    """A net is one autograd function; called run by run (a hook asks for it) it gives the same bits."""
    config = NETS[name]
    chained = digest(train_step(fresh_net(config, "reverse"), net_input(config)))
    net = fresh_net(config, "reverse")
    called = []
    for run in net.runs():
        run.register_forward_hook(lambda module, args, out: called.append(module))
    assert digest(train_step(net, net_input(config))) == chained
    assert called == net.runs()


def test_gradients_accumulate_and_hooks_fire_once():
    """Two backward passes add up, and a parameter's hook is called once for each."""
    config = NETS["ms-resnet"]
    net, x = fresh_net(config, "reverse"), net_input(config)
    once = train_step(net, x)
    net = fresh_net(config, "reverse")
    weight, calls = list(net.parameters())[-2], []
    weight.register_hook(lambda g: calls.append(1))
    for _ in range(2):
        net.train()
        logits = net(x)
        F.cross_entropy(logits, torch.arange(logits.shape[0]) % logits.shape[1]).backward()
    assert len(calls) == 2
    name = next(n for n, p in net.named_parameters() if p is weight)
    torch.testing.assert_close(weight.grad, once[name] + once[name], rtol=0, atol=0)
