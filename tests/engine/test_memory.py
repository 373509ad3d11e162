"""Live bytes of a training step, counted storage by storage on meta tensors."""

import pytest
import torch
from torch.nn import functional as F

from revedge import models
from revedge.models.member import Size
from revedge.models.ms_resnet import MSResNet
from revedge.models.parts import neuron_maker
from revedge.models.revsresnet import RevSResNet
from revedge.models.task import Task
from revedge.planner.tracer import StorageTracker

SIZE = 16  # height and width of the frames


def live_bytes(name: str, *, timesteps: int, batch: int, slab_bytes: int | None, **options) -> int:
    """Peak of what a second step holds, above weights and gradients."""
    with torch.device("meta"):
        net = models.create(
            name,
            in_shape=(2, SIZE, SIZE),
            num_classes=10,
            timesteps=timesteps,
            strategy="reverse",
            **options,
        )
    return peak_bytes(net, timesteps=timesteps, batch=batch, slab_bytes=slab_bytes)


def peak_bytes(net, *, timesteps: int, batch: int, slab_bytes: int | None) -> int:
    """As `live_bytes`, of a net on the meta device."""
    net.set_slab_bytes(slab_bytes)
    tracker = StorageTracker(page_bytes=4096, native_kernels=True)
    tracker.add([*net.parameters(), *net.buffers()], "weights")
    with tracker:
        for _ in range(2):
            net.zero_grad(set_to_none=True)
            x = torch.zeros(timesteps, batch, 2, SIZE, SIZE, device="meta")
            labels = torch.zeros(batch, dtype=torch.int64, device="meta")
            F.cross_entropy(net(x), labels).backward()
            tracker.name([p.grad for p in net.parameters() if p.grad is not None], "gradients")
            del x
    return tracker.bytes_at_peak()["activations"]


@pytest.mark.parametrize("name", ["ms-resnet6", "revsresnet11"])
@pytest.mark.parametrize("slab_bytes", [None, 1 << 18])
def test_depth_costs_kept_bits_only(name, slab_bytes):
    """From 8 to 64 blocks, memory beyond weights, gradients and kept bits is flat."""
    shallow, deep = (
        live_bytes(name, timesteps=4, batch=4, slab_bytes=slab_bytes, depth=depth)
        for depth in (8, 64)
    )
    # A kept spike tensor of the first stage, its page rounding included; none in a coupling.
    width = 32 if name.startswith("ms") else 0
    bits = (64 - 8) // 2 * (4 * 4 * width * SIZE * SIZE // 8 + 4096)
    assert shallow <= deep <= shallow * 1.02 + bits


def test_time_costs_one_gradient_and_bits_only():
    """Twice the steps add what the gradient tensor, the input and the bits of all units add, and half a slab."""
    batch, units, width = 2, 10, 32
    # From 32 steps on the chunks that convolutions work on have their full size.
    short, long = (
        live_bytes("vgg-iso10", timesteps=t, batch=batch, slab_bytes=1 << 18) for t in (32, 64)
    )
    neurons = batch * width * SIZE * SIZE
    gradient, bits, frames = 4 * neurons, units * neurons / 8, 4 * batch * 2 * SIZE * SIZE
    slab = 8 * gradient // width  # a step of the fewest channels that a slab may have
    whole = live_bytes("vgg-iso10", timesteps=64, batch=batch, slab_bytes=None)
    assert long - short <= 32 * (gradient + bits + frames + slab)
    assert long < 0.6 * whole


def stage_peak_bytes(
    kind, halves: int, timesteps: int, *, slab_bytes=None, span_count=None, membranes=None
) -> int:
    """As `live_bytes`, of one stage of four residual or coupling blocks with a stream of 32 channels, batch 2."""
    task = Task(
        in_shape=(2, SIZE, SIZE),
        num_classes=10,
        timesteps=timesteps,
        static=False,
        neuron=neuron_maker("if", tau=2.0, surrogate="atan"),
        config={},
    )
    with torch.device("meta"):
        net = kind(widths=[32 // halves], blocks=[4]).build(task, Size())
    net.set_strategy("reverse")
    net.set_span_count(span_count, membranes=membranes)
    return peak_bytes(net, timesteps=timesteps, batch=2, slab_bytes=slab_bytes)


STREAM = 4 * 2 * 32 * SIZE * SIZE  # bytes of its time step
FRAMES = 4 * 2 * 2 * SIZE * SIZE


@pytest.mark.parametrize(("kind", "halves"), [(MSResNet, 1), (RevSResNet, 2)])
def test_time_costs_a_residual_net_its_branch_gradient_too(kind, halves):
    """Of a net with identity paths: stream, its gradient, that of one branch, bits, the input and a least slab."""
    branch = STREAM // halves
    # Residual blocks keep the bits of their first neuron; the block at work makes those of both its neurons.
    bits = (4 if kind is MSResNet else 0) * STREAM // 32 + 2 * branch // 32
    slab = 8 * STREAM // 32
    expected = 2 * STREAM + branch + bits + slab + FRAMES
    # From 64 steps on a half of the stream is more than one chunk of the convolutions.
    peaks = [stage_peak_bytes(kind, halves, t, slab_bytes=1 << 18) for t in (64, 128)]
    pages = 4 * 4096  # what has 64 KiB and more takes whole pages, and one beside
    assert 0.9 * 64 * expected <= peaks[1] - peaks[0] <= 64 * expected + pages


@pytest.mark.parametrize(("kind", "halves"), [(MSResNet, 1), (RevSResNet, 2)])
def test_time_in_spans_costs_no_branch_gradient(kind, halves):
    """Cut over time: stream, its gradient, bits, the input and membranes before spans; nothing else of all steps."""
    branch = STREAM // halves
    span = 32 * halves  # steps of a chunk of 2 MiB
    few, many = 8, 18  # spans
    peaks = [
        stage_peak_bytes(kind, halves, count * span, span_count=count) for count in (few, many)
    ]
    # A block at work makes what it does not keep: a residual block keeps the bits of its first neuron.
    bits = (5 if kind is MSResNet else 1) * STREAM // 32
    # Of the second neuron before each span but the first; of the first neuron before each 2nd of 8, each 4th of 18.
    membranes = branch * ((many - 1) - (few - 1) + 4 - 3)
    logits = 4 * 2 * 10
    expected = (many - few) * span * (2 * STREAM + bits + FRAMES + logits) + membranes
    pages = 16 * 4096  # as above, for each membrane
    assert expected <= peaks[1] - peaks[0] <= expected + pages


@pytest.mark.parametrize(("kind", "halves"), [(MSResNet, 1), (RevSResNet, 2)])
def test_time_in_spans_with_few_membranes_costs_stream_gradient_and_kept_bits(kind, halves):
    """Nothing else of all steps: no membranes, no bits of the block at work, and of those that it keeps none either."""
    span = 32 * halves  # steps of a chunk of 2 MiB
    few, many = 6, 14  # spans
    peaks = [
        stage_peak_bytes(kind, halves, count * span, span_count=count, membranes=2)
        for count in (few, many)
    ]
    bits = (3 if kind is MSResNet else 0) * STREAM // 32
    logits = 4 * 2 * 10
    expected = (many - few) * span * (2 * STREAM + bits + FRAMES + logits)
    pages = 16 * 4096  # as above
    assert expected - pages <= peaks[1] - peaks[0] <= expected + pages
