"""The tracer counts storages: when they are made, when they die, and what a convolution hides."""

import random

import pytest
import torch
from torch import nn

from revedge.planner.plan import OPTIMIZERS, STRATEGIES
from revedge.planner.setting import Setting
from revedge.planner.trace_child import answer, trace
from revedge.planner.tracer import StorageTracker
from revedge.planner.workspace import allocated_bytes, copies_bytes

PAGE = 4096


def tracker() -> StorageTracker:
    return StorageTracker(page_bytes=PAGE, native_kernels=True)


def setting(**changes: object) -> Setting:
    values: dict[str, object] = {
        "model": "revsresnet11",
        "in_shape": (2, 16, 16),
        "num_classes": 10,
        "timesteps": 4,
        "batch_size": 4,
        "micro_batch_size": 4,
        "strategy": "reverse",
    }
    return Setting(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nbytes", "taken"),
    [
        (0, 0),
        (1, 128),
        (64, 128),
        (65, 192),
        (65_408, 65_472),  # the last that lies on the heap
        (65_472, 17 * PAGE),  # a mapping of its own: 16 pages and one for the header
        (65_536, 17 * PAGE),
        (65_537, 18 * PAGE),
        (1 << 20, 257 * PAGE),
    ],
)
def test_allocated_bytes(nbytes: int, taken: int) -> None:
    """Small blocks take a header more, large ones whole pages and one more."""
    assert allocated_bytes(nbytes, PAGE) == taken


def test_workspace_pads_channels() -> None:
    """Every 4-d operand is copied once with its channels padded to 16; others are not."""
    assert copies_bytes([(8, 2, 10, 10), (16, 3, 3, 3), (16,)], 4) == 4 * (
        8 * 16 * 100 + 16 * 16 * 9
    )


def test_peak_of_a_chain() -> None:
    """In a chain whose links are dropped, two links are alive at the peak."""
    link = allocated_bytes(400_000, PAGE)
    with tracker() as found:
        x = torch.empty(100_000, device="meta")
        for _ in range(5):
            x = x + 1
        del x
    assert found.peak_bytes == 2 * link
    assert found.live_bytes == 0


def test_views_and_in_place_take_nothing() -> None:
    """A view, an in-place operation and a result written to a given tensor are no new storage."""
    with tracker() as found:
        x = torch.empty(100_000, device="meta")
        y = x.view(100, 1000)[3:].t()
        x.add_(1)
        torch.mul(x, 2, out=x)
    assert found.peak_bytes == found.live_bytes == allocated_bytes(400_000, PAGE)
    del y


def test_what_changes_a_shape_in_place_runs() -> None:
    """An operator that gives its argument another shape is not skipped as one that changes values only."""
    with tracker() as found:
        x = torch.empty(100_000, device="meta")
        y = x.new_empty(0).set_(x.view(100, 1000))  # type: ignore[call-overload]
        assert y.shape == (100, 1000)
        assert torch.empty(3, 1, device="meta").squeeze_().add_(1).shape == (3,)
    assert found.peak_bytes >= allocated_bytes(400_000, PAGE)


def test_seeded_storages_keep_their_kind() -> None:
    """What is there before the trace counts, once, under the kind it was given."""
    weight = torch.empty(100_000, device="meta")
    found = tracker()
    found.add([weight, weight.view(-1)], "weights")
    with found:
        y = weight * 2
    size = allocated_bytes(400_000, PAGE)
    assert found.bytes_at_peak() == {"weights": size, "activations": size}
    del y


def test_backward_of_a_linear_layer_is_counted_exactly() -> None:
    """Input, weight, output and gradients: each storage of a linear layer and no other."""
    layer = nn.Linear(256, 512, bias=False, device="meta")
    x = torch.empty(128, 256, device="meta")
    found = tracker()
    found.add([layer.weight, x], "given")
    with found:
        layer(x).sum().backward()
    given = allocated_bytes(256 * 512 * 4, PAGE) + allocated_bytes(128 * 256 * 4, PAGE)
    # The output dies when it is summed; the gradient of the weight comes later and is larger.
    # Beside it stands the gradient of the sum, one number, whose expansion is a view.
    gradient = allocated_bytes(256 * 512 * 4, PAGE)
    number = allocated_bytes(4, PAGE)
    assert found.live_bytes == given + gradient
    assert given + gradient <= found.peak_bytes <= given + gradient + 2 * number


def test_convolution_has_workspace_at_its_peak() -> None:
    """The peak of a convolution is its operands, its result, and the bound on its workspace."""
    weight = torch.empty(32, 2, 3, 3, device="meta")
    x = torch.empty(4, 2, 34, 34, device="meta")
    found = tracker()
    found.add([weight, x])
    with found:
        y = torch.conv2d(x, weight, padding=1)
    sizes = sum(allocated_bytes(t.numel() * 4, PAGE) for t in (weight, x, y))
    hidden = 4 * (32 * 16 * 9 + 4 * 16 * 34 * 34 + 4 * 32 * 34 * 34)
    assert found.peak_bytes == sizes + hidden
    assert found.peak_workspace_bytes == hidden


@pytest.mark.parametrize(
    ("batch", "channels", "side", "kernel", "threads", "onednn"),
    [
        (1, 16, 32, 3, 1, False),  # 16,384 values
        (1, 24, 32, 3, 1, True),
        (2, 4, 8, 3, 1, True),
        (2, 4, 8, 1, 1, False),
        (2, 4, 8, 1, 2, True),
        (16, 4, 8, 1, 1, True),
    ],
)
def test_small_convolutions_are_unfolded_by_torch(
    batch: int, channels: int, side: int, kernel: int, threads: int, *, onednn: bool
) -> None:
    """What oneDNN is not given takes the columns of one sample, and counts as no convolution of oneDNN."""
    weight = torch.empty(8, channels, kernel, kernel, device="meta")
    x = torch.empty(batch, channels, side, side, device="meta")
    found = StorageTracker(page_bytes=PAGE, native_kernels=True, threads=threads)
    with found:
        y = torch.conv2d(x, weight, padding=kernel // 2)
    assert len(found.convolutions) == onednn
    if not onednn:
        assert found.peak_workspace_bytes == 4 * channels * kernel**2 * side**2
    del y


def test_backward_of_a_convolution_copies_its_input_once_more_if_strided() -> None:
    """One copy of gradient, input and weight; of the input two where the convolution has a stride."""
    hidden = []
    for stride in (1, 2):
        weight = torch.empty(16, 16, 3, 3, device="meta", requires_grad=True)
        x = torch.empty(4, 16, 32, 32, device="meta", requires_grad=True)
        found = tracker()
        with found:
            torch.conv2d(x, weight, stride=stride, padding=1).sum().backward()
        side = 32 // stride
        hidden.append(4 * 16 * (4 * side**2 + stride * 4 * 32**2 + 16 * 9))
        assert found.peak_workspace_bytes == hidden[-1]
        assert not found.narrow


def test_few_channels_on_a_tiny_map_are_narrow() -> None:
    """The gradient of a 3x3 weight of 4 to 15 input channels on 2x2 pixels is a matrix product, on 4x4 it is not."""
    for channels, side, narrow in ((12, 2, True), (12, 4, False), (16, 2, False), (3, 2, False)):
        weight = torch.empty(16, channels, 3, 3, device="meta", requires_grad=True)
        found = tracker()
        with found:
            torch.conv2d(
                torch.empty(8, channels, side, side, device="meta"), weight, padding=1
            ).sum().backward()
        assert found.narrow == narrow


def drawn(count: int) -> list[Setting]:
    """Configurations over all kinds of models, from a seeded generator."""
    draw, found = random.Random(0), list[Setting]()
    for _ in range(count):
        model, neuron = draw.choice(
            [("revsresnet16", "plif"), ("ms-resnet10", "if"), ("vgg5", "lif"),
             ("vgg5", "reversible"), ("ms-resnet20", "lif")]
        )  # fmt: skip
        batch = draw.choice([1, 3, 8, 64])
        micro = batch if draw.random() < 0.6 else 1
        found.append(
            setting(
                model=model,
                model_options={"neuron": neuron, "width": draw.choice([8, 12])},
                in_shape=(2, 34, 34),
                static=draw.random() < 0.3,
                timesteps=draw.choice([1, 2, 5, 17]),
                batch_size=batch,
                micro_batch_size=micro,
                strategy=draw.choice(STRATEGIES),
                slab_bytes=draw.choice([None, 8 << 20, 1 << 18]),
                update_in_backward=micro == batch and draw.random() < 0.5,
                optimizer=draw.choice(OPTIMIZERS),
            )
        )
    return found


@pytest.mark.parametrize("each", drawn(12), ids=lambda s: f"{s.model}-{s.strategy}")
def test_short_cuts_change_no_byte(each: Setting) -> None:
    """Chunks and operators that are not run again take what those took that were."""
    short, thorough = trace(each), trace(each, thorough=True)
    del short["operations"], thorough["operations"]
    assert short == thorough


def test_trace_parts_sum_to_the_peak() -> None:
    """What a training takes is the sum of its parts, and the weights are the model's."""
    found = trace(setting())
    kinds = ("weights", "gradients", "optimizer", "data", "activations", "workspace")
    assert sum(found[f"{kind}_bytes"] for kind in kinds) == found["peak_bytes"]
    assert found["weights_bytes"] >= 4 * found["parameters"]
    assert found["optimizer_bytes"] >= 2 * 4 * found["parameters"]


@pytest.mark.parametrize("strategy", ["store", "keep-conv", "keep-spikes", "reverse"])
def test_memory_grows_with_depth_time_and_batch(strategy: str) -> None:
    """The search bisects, so memory must not fall where depth, T or the micro-batch grows."""
    model = "revsresnet11" if strategy == "reverse" else "ms-resnet6"
    grown = {
        "timesteps": [1, 2, 3, 5, 8],
        "micro_batch_size": [1, 2, 4, 8],
        "model_options": [{"depth": n} for n in (2, 3, 4, 6)],
    }
    for name, values in grown.items():
        peaks = []
        for value in values:
            batch = value if name == "micro_batch_size" else 4
            peaks.append(
                trace(setting(model=model, strategy=strategy, batch_size=batch, **{name: value}))[
                    "peak_bytes"
                ]
            )
        assert peaks == sorted(peaks), (name, peaks)


def test_reversed_depth_costs_no_activations() -> None:
    """Under `reverse` four times the blocks keep no more activations; stored they keep more."""
    grows = {}
    for strategy in ("reverse", "store"):
        shallow, deep = (
            trace(setting(strategy=strategy, model_options={"depth": depth}))["activations_bytes"]
            for depth in (4, 16)
        )
        grows[strategy] = deep / shallow
    assert grows["reverse"] < 1.05
    assert grows["store"] > 2


def test_an_update_in_backward_frees_gradients() -> None:
    """Where weights outweigh activations, gradients that are freed unit by unit are a large part of the peak."""
    small = {"model": "vgg11", "in_shape": (2, 32, 32), "batch_size": 1, "micro_batch_size": 1}
    one, other = trace(setting(**small)), trace(setting(**small, update_in_backward=True))
    assert other["gradients_bytes"] < 0.4 * one["gradients_bytes"]
    saved = one["gradients_bytes"] - other["gradients_bytes"]
    # The peak may move to a moment with other activations, so not all of it is won.
    assert saved / 2 < one["peak_bytes"] - other["peak_bytes"] <= saved


def test_slabs_take_less() -> None:
    """Slabs of channels shrink what stands beside the kept tensors; the smallest size is not always the best."""
    many = {"in_shape": (2, 32, 32), "timesteps": 16, "batch_size": 16, "micro_batch_size": 16}
    peaks = {
        slab: trace(setting(model="ms-resnet10", slab_bytes=slab, **many))["peak_bytes"]
        for slab in (None, 8 << 20)
    }
    assert peaks[8 << 20] < 0.9 * peaks[None]


def test_accumulation_keeps_gradients() -> None:
    """With micro-batches the gradients are alive while the next one runs."""
    one = trace(setting(batch_size=4, micro_batch_size=4))
    many = trace(setting(batch_size=8, micro_batch_size=4))
    assert many["gradients_bytes"] > one["gradients_bytes"]
    assert many["peak_bytes"] >= one["peak_bytes"]


def test_what_each_run_keeps_is_told() -> None:
    """At the peak the runs' shares are part of the activations; under `store` they are most, under `reverse` few."""
    shares = []
    for strategy in ("store", "reverse"):
        each = setting(model="revsresnet16", strategy=strategy, batch_size=8, micro_batch_size=8)
        found = answer({"do": "timeline", "setting": each.to_json()})
        traced = trace(each)
        assert len(found["kept_bytes"]) == traced["runs"]
        assert 0 < sum(found["kept_bytes"]) <= traced["activations_bytes"]
        shares.append(sum(found["kept_bytes"]) / traced["activations_bytes"])
    assert shares[0] > 0.5 > shares[1]


def test_bad_requests_are_answered() -> None:
    """A model that does not exist, or not in this form, is an answer and not an end."""
    unknown = answer({"do": "trace", "setting": setting(model="revsresnet").to_json()})
    assert unknown["kind"] == "UsageError"
    assert "revsresnet67" in unknown["error"]
    broken = answer({"do": "trace", "setting": setting(model_options={"wings": 2}).to_json()})
    assert broken["kind"] == "failure"
