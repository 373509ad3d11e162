"""Names and the two forms (sequence and step) of every model; what is asked for wrongly."""

import pytest
import torch
from torch import nn

from revedge import models
from revedge.errors import UsageError


@pytest.mark.parametrize("name", models.names())
def test_every_member_builds_steps_and_rebuilds(name):
    """A net made again from its config has the same tensors; steps in turn give the sequence's logits."""
    torch.manual_seed(0)
    width = 8 if "former" in name else 4
    net = models.create(name, in_shape=(2, 32, 32), num_classes=4, timesteps=2, width=width)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):  # lively: spikes in every layer
            nn.init.uniform_(norm.weight, 1.5, 2.5)
            nn.init.uniform_(norm.bias, 0.0, 1.0)
    again = models.create(**net.config)
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in again.state_dict().items()
    }

    net.eval()
    # Batch 1: one convolution sees T*B = 2 or 1 images, same per-image arithmetic.
    x = torch.rand(2, 1, 2, 32, 32)
    with torch.no_grad():
        whole = net(x)
        states, logits = net.initial_states(1), []
        for x_t in x:
            out, states = net.step(x_t, states)
            logits.append(out)
    assert [tuple(s.shape[1:]) for s in states] == [spec.shape for spec in net.state_spec()]
    # Convolutions may differ in the last bit with the batch, so a spike may flip; most nets here agree to rounding.
    torch.testing.assert_close(torch.stack(logits).mean(0), whole, rtol=0, atol=0.05)


def test_static_images_run_the_stem_once():
    """A static net repeats the stem's output, not the image."""
    net = models.create("revsresnet11", in_shape=(1, 8, 8), num_classes=3, timesteps=5, static=True)
    seen = []
    net.stem.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert seen == [(1, 2, 32, 8, 8)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "revsresnet12"}, "did you mean revsresnet"),
        ({"neuron": "izhikevich"}, "choose one of if, lif, plif"),
        ({"neuron": "reversible"}, "choose one of if, lif, plif"),
        ({"in_shape": (2, 1, 1)}, "halves its input 1 times"),
        ({"in_shape": (2, 0, 8)}, "channels, height, width"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"timesteps": 0}, "timesteps=0"),
        ({"depth": 1}, "depth 1 is less than"),
        ({"width": 0}, "width 0"),
        ({"strategy": "magic"}, "keep-conv"),
        ({"strategy": ["store"]}, "1 strategies were given for"),
    ],
)
def test_bad_arguments_say_what_to_do(change, message):
    """Each mistake is a UsageError that names the value and a way out."""
    arguments = {
        "name": "revsresnet11",
        "in_shape": (2, 8, 8),
        "num_classes": 3,
        "timesteps": 2,
    } | change
    with pytest.raises(UsageError, match=message):
        models.create(**arguments)


def test_wrong_input_is_named():
    """Shape and layout of a wrong input are in the message."""
    net = models.create("revsresnet11", in_shape=(2, 8, 8), num_classes=3, timesteps=2)
    with pytest.raises(UsageError, match=r"takes \[T, B, C, H, W\]"):
        net(torch.rand(2, 2, 8, 8))


def test_convolutions_start_as_published():
    """Kaiming normal over the fan-out: the deviation is sqrt(2 / (9 * channels out)) within sampling error."""
    torch.manual_seed(0)
    net = models.create("ms-resnet18", in_shape=(3, 32, 32), num_classes=10, timesteps=1)
    weight = dict(net.named_parameters())["body.0.branches.0.units.0.op.weight"]
    deviation = float(weight.detach().std())
    assert abs(deviation / (2 / (9 * 64)) ** 0.5 - 1) < 4 / (2 * weight.numel()) ** 0.5
