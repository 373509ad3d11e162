"""The look between units: taken in forward and backward, and what it raises ends the step."""

from collections.abc import Callable, Iterator

import pytest
import torch
from engine_checks import NETS, fresh_net, net_input
from torch import Tensor, nn

from revedge.engine import STRATEGIES, look_between_units


@pytest.fixture(autouse=True)
def nobody_looks() -> Iterator[None]:
    """End the look after each test."""
    yield
    look_between_units(None)


@pytest.mark.parametrize("name", ["revsresnet", "ms-resnet", "spikingformer"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_taken_at_every_unit_and_changes_nothing(name: str, strategy: str) -> None:
    """At least at every convolution or linear layer with weights, both ways; the gradients keep their bits."""
    found: list[list[Tensor]] = []
    looks: list[int] = []
    for look in (None, lambda: looks.append(1)):
        look_between_units(look)
        net = fresh_net(NETS[name], strategy).train()
        loss = net(net_input(NETS[name])).sum()
        in_forward = len(looks)
        loss.backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    weights = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert in_forward >= weights > 0
    assert len(looks) - in_forward >= weights
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_what_it_raises_ends_the_step(place: str) -> None:
    """Out of the forward pass or of backward; without a look the next step is whole."""
    net = fresh_net(NETS["ms-resnet"], "reverse").train()
    x = net_input(NETS["ms-resnet"])
    loss = net(x).sum()
    steps: dict[str, Callable[[], object]] = {"forward": lambda: net(x), "backward": loss.backward}

    def look() -> None:
        raise MemoryError("no")

    look_between_units(look)
    with pytest.raises(MemoryError, match="no"):
        steps[place]()
    look_between_units(None)
    net(x).sum().backward()
