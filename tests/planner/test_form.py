"""The closed form of a step's memory is the trace of it, to the byte, at sizes that nobody chose."""

import dataclasses
import random
from typing import Any

import pytest

from revedge.allocator import page_bytes
from revedge.errors import UsageError
from revedge.planner import choose as choosing
from revedge.planner.form.meter import Meter
from revedge.planner.form.shape import Net, NotCoveredError, net_of
from revedge.planner.form.step import Evaluated, evaluate
from revedge.planner.formulas import Formulas
from revedge.planner.plan import OPTIMIZERS, STRATEGIES
from revedge.planner.request import Request
from revedge.planner.setting import Setting
from revedge.planner.trace_child import geometry, trace
from revedge.planner.trace_client import TraceClient

MODELS = [
    "vgg5", "vgg11", "vgg-iso10", "plif-net7", "ms-resnet10", "ms-resnet20", "revsresnet16", "revsresnet24",
    "spikingformer-2-256", "spikingformer-2-384", "revsformer-2-384", "resnet18", "resnet19", "resnet50",
    "preact-resnet18",
]  # fmt: skip
STACKS = [name for name in MODELS if name.startswith(("ms-", "rev", "spiking"))]
SHAPES = [(2, 16, 16), (1, 28, 28), (3, 33, 35), (2, 49, 47), (2, 97, 99)]


def drawn(seed: int, index: int) -> Setting:
    """A configuration from a seeded generator: every model in turn, odd sizes, all ways of saving memory."""
    draw = random.Random(1000 * seed + index)
    model = MODELS[index % len(MODELS)]
    options: dict[str, Any] = {"neuron": draw.choice(["if", "lif", "plif"])}
    options["width"] = draw.choice([8, 16, 24] if "former" in model else [3, 8, 9, 16, 25])
    if model.startswith(("vgg", "resnet", "preact")) and draw.random() < 0.4:
        options = {"neuron": "reversible", "width": draw.choice([4, 6, 16])}
    if draw.random() < 0.3 and not model.startswith(("vgg", "plif")):
        options["depth"] = draw.randint(4, 40)
    batch = draw.choice([1, 2, 3, 5, 16, 33])
    micro = batch if draw.random() < 0.7 else 1
    strategy: Any = draw.choice(STRATEGIES)
    setting = Setting(
        model=model,
        model_options=options,
        in_shape=draw.choice(SHAPES[2:] if model in ("plif-net7", "vgg11") else SHAPES),
        num_classes=draw.choice([2, 7, 101]),
        static=draw.random() < 0.3 and not (model[:3] == "vgg" and options["neuron"][0] == "r"),
        timesteps=draw.choice([1, 2, 3, 9, 17]),
        batch_size=batch,
        micro_batch_size=micro,
        strategy=strategy,
        slab_bytes=draw.choice([None, 8 << 20, 1 << 18, 1 << 15]),
        update_in_backward=micro == batch and draw.random() < 0.4,
        optimizer=draw.choice(OPTIMIZERS),
    )
    if draw.random() < 0.3:
        names = [draw.choice(STRATEGIES) for _ in net_of(geometry(setting)).runs]
        setting = dataclasses.replace(setting, strategy=tuple(names))
    return setting


def by_formulas(setting: Setting, **options: bool) -> Evaluated:
    """Evaluate in this process."""
    return evaluate(net_of(geometry(setting)), setting, page_bytes(), **options)


@pytest.mark.parametrize("index", range(4 * len(MODELS)))
def test_formulas_equal_the_trace_to_the_byte(index: int) -> None:
    """The peak, weights, optimizer, and the number of convolutions that oneDNN computes."""
    setting = drawn(7, index)
    traced, told = trace(setting), by_formulas(setting)
    assert told.peak_bytes == traced["peak_bytes"]
    assert told.weights_bytes == traced["weights_bytes"]
    assert told.optimizer_bytes == traced["optimizer_bytes"]
    assert len(told.convolutions) == traced["convolutions"]
    assert any(each.narrow for each in told.convolutions) == bool(traced["narrow"])


@pytest.mark.parametrize("index", range(32))
def test_formulas_of_spans_equal_the_trace_to_the_byte(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every residual and reversible net in spans, with chunks so small that there are some."""
    monkeypatch.setattr("revedge.engine.signal.CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr("revedge.planner.form.tail.CHUNK_BYTES", 1 << 16)
    draw = random.Random(index)
    setting = Setting(
        model=STACKS[index % len(STACKS)],
        model_options={"neuron": draw.choice(["if", "plif"]), "width": draw.choice([16, 24, 64])},
        in_shape=draw.choice([(2, 32, 32), (2, 64, 64), (3, 33, 35)]),
        num_classes=7,
        static=draw.random() < 0.3,
        timesteps=draw.choice([5, 16, 33]),
        batch_size=4,
        micro_batch_size=draw.choice([2, 4]),
        strategy=draw.choice(["keep-spikes", "reverse"]),
        slab_bytes=draw.choice([None, 1 << 18]),
        span_count=draw.choice([2, 5, 16]),
        threads=1,
    )
    if index % 2:
        setting = dataclasses.replace(setting, membrane_count=draw.choice([1, 2, 3, 20]))
    if index % 4 > 1:
        setting = dataclasses.replace(setting, chunk_bytes=draw.choice([1, 1 << 15, 1 << 18]))
    if setting.micro_batch_size == 4 and draw.random() < 0.5:
        setting = dataclasses.replace(setting, update_in_backward=True)
    told = by_formulas(setting)
    assert told.peak_bytes == trace(setting)["peak_bytes"]
    if index < 3:
        assert told.peak_bytes == trace(setting, thorough=True)["peak_bytes"]


@pytest.mark.parametrize(
    ("model", "width", "shape", "timesteps", "slab_bytes", "spans", "membranes"),
    [
        ("revsresnet16", 24, (2, 32, 32), 16, 1 << 16, 64, 2),
        ("revsresnet16", 64, (2, 32, 32), 16, 1 << 18, 16, 1),
        ("revsresnet11", 64, (2, 32, 32), 16, 1 << 16, 8, 2),
    ],
)
def test_formulas_where_few_membranes_have_the_peak(
    model: str,
    width: int,
    shape: tuple[int, int, int],
    timesteps: int,
    slab_bytes: int,
    spans: int,
    membranes: int,
) -> None:
    """Not a feed: the peak is in a span of one chunk, whose bits are gone once it is read."""
    setting = Setting(
        model=model,
        model_options={"width": width},
        in_shape=shape,
        num_classes=7,
        timesteps=timesteps,
        batch_size=4,
        micro_batch_size=2,
        strategy="reverse",
        slab_bytes=slab_bytes,
        span_count=spans,
        membrane_count=membranes,
        chunk_bytes=1 << 20,
        threads=1,
    )
    told = by_formulas(setting).peak_bytes
    assert told == trace(setting)["peak_bytes"]
    more = dataclasses.replace(setting, membrane_count=None)
    assert told < by_formulas(more).peak_bytes


def test_spans_halve_what_blocks_take() -> None:
    """Of a run of blocks; the feeds around it take what they took."""
    setting = Setting(
        model="ms-resnet6",
        model_options={"width": 32},
        in_shape=(2, 32, 32),
        num_classes=7,
        timesteps=64,
        batch_size=2,
        micro_batch_size=2,
        strategy="reverse",
        span_count=8,
    )
    whole = dataclasses.replace(setting, span_count=None)
    assert by_formulas(setting).runs[1].top < 0.6 * by_formulas(whole).runs[1].top


def test_sites_are_named_and_the_peak_is_at_one() -> None:
    """Each part of a step comes before what it is a part of; the most of all sites is the peak."""
    setting = drawn(7, 4)
    told = by_formulas(setting, with_sites=True)
    names = [name for name, _ in told.sites]
    assert max(live_bytes for _, live_bytes in told.sites) == told.peak_bytes
    assert by_formulas(setting).sites == []
    assert names.index("forward of the stem, unit 0") < names.index("forward of the stem")
    assert names[-1] == "evaluation"
    for way in ("forward", "backward"):
        assert f"{way} of the head" in names


def test_what_no_formula_knows_is_refused() -> None:
    """Strategies and kinds of setting that do not exist, an image that must be copied, groups that do not divide."""
    setting = dataclasses.replace(drawn(7, 0), model_options={"width": 8}, strategy="store")
    odd = dataclasses.replace(setting, model_options={"width": 9, "neuron": "reversible"})
    image = dataclasses.replace(
        setting, model_options={"width": 8, "neuron": "reversible"}, static=True
    )
    for refused, reason in (
        (dataclasses.replace(setting, strategy="forget"), "strategy forget"),
        (dataclasses.replace(setting, strategy=("store", "store")), "2 strategies"),
        (dataclasses.replace(setting, device="cuda"), "device"),
        (dataclasses.replace(setting, precision="bfloat16"), "precision"),
        (odd, "groups"),
        (image, "copied"),
    ):
        with pytest.raises(NotCoveredError, match=reason):
            by_formulas(refused)


def test_a_repeated_block_counts_as_often_as_it_comes() -> None:
    """What grows is added each time, and the peak is at the end that is higher."""

    def grown(step: int, count: int) -> tuple[int, int]:
        meter = Meter(4096, 1)
        meter.live_bytes = meter.peak_bytes = 10_000

        def block() -> None:
            meter.note(1000)
            meter.live_bytes += step

        meter.times(count, block)
        return meter.live_bytes, meter.peak_bytes

    beside = Meter(4096, 1).bytes_of(1000)
    assert grown(100, 4) == (10_400, 10_300 + beside)
    assert grown(-100, 4) == (9_600, 10_000 + beside)
    assert grown(100, 0) == (10_000, 10_000)


def test_formulas_ask_the_tracer_for_the_rest(planner_cache: str) -> None:
    """The answer for bfloat16 is the trace's; for float32 no trace is made."""
    del planner_cache
    plain = dataclasses.replace(drawn(7, 0), strategy="reverse", model_options={"width": 8})
    low = dataclasses.replace(plain, precision="bfloat16")
    with TraceClient() as client:
        formulas = Formulas(client)
        assert formulas.trace(low) == client.trace(low)
        assert (formulas.traced, formulas.evaluated) == (1, 0)
        told, traced = formulas.trace(plain), client.trace(plain)
        assert (formulas.traced, formulas.evaluated) == (1, 1)
        assert {name: told[name] for name in told if name not in ("activations_bytes",)} == {
            name: traced[name] for name in told if name not in ("activations_bytes",)
        }
        with pytest.raises(UsageError, match="no-such-net"):
            formulas.trace(dataclasses.replace(plain, model="no-such-net"))


def test_pages_are_those_of_the_board(planner_cache: str) -> None:
    """With pages of 16 KiB, as on a Raspberry Pi 5, formulas and trace tell the same, and more than with 4 KiB."""
    del planner_cache
    setting = dataclasses.replace(drawn(7, 0), strategy="keep-conv", span_count=None)
    peaks = []
    for size in (4096, 16384):
        with TraceClient(size) as client:
            told, traced = Formulas(client).trace(setting), client.trace(setting)
            assert told["peak_bytes"] == traced["peak_bytes"]
            peaks.append(traced["peak_bytes"])
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize("error", [0, -50 << 20])
def test_the_tracer_has_the_last_word(
    planner_cache: str, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A formula that told a wrong peak costs a second search, not a wrong plan."""
    del planner_cache
    asked = Request(
        data="digits",
        budget_bytes=1 << 20,
        model="ms-resnet6",
        in_shape=(2, 32, 32),
        num_classes=4,
        timesteps=4,
        batch_size=16,
    )
    floor_bytes = choosing.choose(asked).floor_bytes
    asked = dataclasses.replace(asked, budget_bytes=floor_bytes + (140 << 20))
    right = choosing.choose(asked)

    def wrong(net: Net, setting: Setting, page: int, **options: Any) -> Evaluated:
        told = evaluate(net, setting, page, **options)
        return dataclasses.replace(told, peak_bytes=told.peak_bytes + error)

    monkeypatch.setattr("revedge.planner.formulas.evaluate", wrong)
    again = choosing.choose(asked)
    assert again.plan == right.plan
    assert again.floor_bytes == right.floor_bytes
    assert right.plan is not None
    assert right.plan.parts["gradients_bytes"] > 0  # those of the trace
    assert right.sites
