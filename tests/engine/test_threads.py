"""Two threads: tensors large enough that kernels and operators share their work out."""

from collections.abc import Iterator

import pytest
import torch
from engine_checks import NETS, digest, fresh_net, net_input, train_step

# First layers have 65536 neuron-steps and more, which kernels share out between two threads.
BATCH = 40


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Run with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "name", ["ms-resnet", "revsresnet-plif-static", "resnet18", "spikingformer", "vgg-reversible"]
)
def test_strategies_and_spans_agree_on_two_threads(name):
    """Gradients, logits and running statistics are equal to the last bit, however the work falls to threads."""
    config = NETS[name]
    found = {}
    for strategy, spans in (
        ("store", None),
        ("keep-spikes", None),
        ("reverse", None),
        ("reverse", 3),
    ):
        net = fresh_net(config, strategy)
        net.set_strategy(strategy, check="checksum")
        net.set_span_count(spans)
        gradients = train_step(net, net_input(config, BATCH))
        found[strategy, spans] = (digest(gradients), digest(dict(net.named_buffers())))
    assert len(set(found.values())) == 1, found
