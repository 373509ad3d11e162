"""The three backwards of the reversible neuron inside the engine: under every strategy, one gradient."""

import torch
from engine_checks import NETS, PLAIN_TOLERANCE, digest, fresh_net, net_input, train_step
from torch import Tensor

from revedge.engine import STRATEGIES
from revedge.neurons import BACKWARDS, ReversibleNode
from revedge.neurons.reversible_backward import Backward

CONFIG = NETS["vgg-reversible"]


def gradients(strategy: str, backward: Backward) -> dict[str, Tensor]:
    net = fresh_net(CONFIG, strategy)
    for node in net.modules():
        if isinstance(node, ReversibleNode):
            node.backward = backward
    return train_step(net, net_input(CONFIG))


def test_strategies_and_backwards_agree():
    """No strategy changes a bit; stored is direct to the last bit, conventional to the rounding of float32 sums."""
    found = {b: {s: gradients(s, b) for s in STRATEGIES} for b in BACKWARDS}
    for of_one in found.values():
        assert len({digest(g) for g in of_one.values()}) == 1
    direct, conventional = found["direct"]["invert"], found["conventional"]["invert"]
    assert digest(found["stored"]["store"]) == digest(direct)
    largest = max(float(g.norm()) for g in direct.values())
    for key, expected in direct.items():
        error = float((conventional[key] - expected).norm())
        assert error <= PLAIN_TOLERANCE * max(float(expected.norm()), 1e-3 * largest), key
    assert digest(conventional) != digest(direct)  # it did go another way


def test_stored_keeps_its_membranes():
    """The kernels of the way back are told apart by what they take: rebuilding from Y is not called."""
    calls = {}
    for backward in BACKWARDS:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            gradients("store", backward)
        calls[backward] = {e.key for e in profile.key_averages() if "revedge::reversible" in e.key}
    prefix = "revedge::reversible_"
    assert calls["direct"] == {prefix + "forward", prefix + "backward_"}
    assert calls["stored"] == {prefix + "forward_stored", prefix + "stored_backward_"}
    assert calls["conventional"] == {prefix + "forward"}
