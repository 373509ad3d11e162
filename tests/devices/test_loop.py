"""The training loop with a small plain network: exact resuming, micro-batches, evaluation, failures."""

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from revedge import models
from revedge.devices import optimizer
from revedge.devices.batches import Batches
from revedge.devices.checkpoint import CheckpointStore
from revedge.devices.loop import TrainingLoop
from revedge.devices.loop_settings import LoopSettings, Stopped, learning_rate_at
from revedge.errors import RevedgeError

# Micro-batches add the same float32 gradients in another order: n = 30 terms, each rounded to 2**-24, over 9 steps
# of AdamW, whose update is at most the learning rate: 30 * 9 * 2**-24 relative, with a factor of 10 for its division.
TOLERANCE = 2e-4


class Frames:
    """30 training and 11 test samples of noise whose class is the brighter half."""

    scale = 1 / 255

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(41, dtype=np.int64) % 2
        self.frames = rng.integers(0, 100, (41, 1, 4, 4)).astype(np.uint8)
        self.frames[self.labels == 1, :, :2] += 100
        self.train_indices, self.test_indices = np.arange(30), np.arange(30, 41)
        self.dropped = 0

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of the samples."""
        return self.frames[indices].copy(), self.labels[indices]

    def drop_pages(self) -> None:
        """Count the calls."""
        self.dropped += 1


def _net(dropout: float = 0.3, norm: bool = True) -> nn.Module:
    torch.manual_seed(5)
    middle = [nn.BatchNorm2d(3)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(12, 2)
    )


def _loop(folder: Path, net: nn.Module | None = None, **changes: Any) -> TrainingLoop:
    hooks: dict[str, Callable[..., Any]] = {
        name: changes.pop(name)
        for name in ("should_stop", "watch", "before_step")
        if name in changes
    }
    events: list[dict[str, Any]] = changes.pop("events", [])
    values: dict[str, Any] = {
        "seed": 1,
        "epochs": 3,
        "batch_size": 10,
        "micro_batch_size": 5,
        "learning_rate": 0.02,
        "label_smoothing": 0.1,
        "augment_pixels": 1,
        "checkpoint_every_s": 0.0,
    }
    model, name = net or _net(), changes.pop("optimizer", "adamw")
    return TrainingLoop(
        model,
        optimizer.create(name, model.named_parameters(), weight_decay=0.01),
        Frames(),
        LoopSettings(**(values | changes)),
        CheckpointStore(folder, "test"),
        report=events.append,
        **hooks,
    )


def _equal(one: TrainingLoop, other: TrainingLoop) -> bool:
    return all(
        torch.equal(tensor, other.saving.tensors()[name])
        for name, tensor in one.saving.tensors().items()
    )


@pytest.mark.parametrize("calls", [1, 4, 9, 10, 13])
def test_stopped_anywhere_and_resumed_gives_the_same_bits(tmp_path: Path, calls: int) -> None:
    """Weights, statistics, optimizer state and reported metrics equal those of the uninterrupted training."""
    whole_events: list[dict[str, Any]] = []
    whole = _loop(tmp_path / "whole", events=whole_events)
    whole.run()
    left = [calls]

    def should_stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    events: list[dict[str, Any]] = []
    cut = _loop(tmp_path / "cut", should_stop=should_stop, events=events)
    with pytest.raises(Stopped):
        cut.run()
    resumed = _loop(tmp_path / "cut", net=_net(), events=events)
    resumed.saving.restore()
    assert resumed.position.step == cut.position.step > 0
    resumed.run()
    assert _equal(whole, resumed)
    kept = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    lines = [
        [{k: e[k] for k in kept} for e in each if e["event"] == "epoch"]
        for each in (whole_events, events)
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 3


def test_warming_up_changes_nothing(tmp_path: Path) -> None:
    """The step before the fence leaves weights, running statistics and counters as they were."""
    loop = _loop(tmp_path)
    before = {name: tensor.clone() for name, tensor in loop.saving.tensors().items()}
    loop.warm_up()
    assert all(torch.equal(tensor, before[name]) for name, tensor in loop.saving.tensors().items())
    assert all(p.grad is None for p in loop.model.parameters())


@pytest.mark.parametrize("micro", [1, 3, 10])
def test_micro_batches_give_the_gradient_of_the_batch(tmp_path: Path, micro: int) -> None:
    """Without batch statistics and dropout the micro-batch changes nothing but rounding, divisor or not."""
    whole = _loop(tmp_path / "a", net=_net(0.0, norm=False), micro_batch_size=10)
    parts = _loop(tmp_path / "b", net=_net(0.0, norm=False), micro_batch_size=micro)
    whole.run()
    parts.run()
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def test_evaluation_counts_the_whole_test_split(tmp_path: Path) -> None:
    """Loss and accuracy are those of all 11 samples at once, and evaluation changes no statistic."""
    loop = _loop(tmp_path, micro_batch_size=4)
    before = {name: tensor.clone() for name, tensor in loop.saving.tensors().items()}
    loss, accuracy = loop.evaluate()
    frames, labels = Frames().batch(np.arange(30, 41))
    with torch.no_grad():
        logits = loop.model.eval()(torch.from_numpy(frames).float() / 255)
    wanted = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    assert math.isclose(loss, float(wanted), rel_tol=1e-5)
    assert math.isclose(accuracy, float((logits.argmax(1).numpy() == labels).mean()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in loop.saving.tensors().items())


def test_the_order_of_an_epoch_takes_two_bytes_a_sample(tmp_path: Path) -> None:
    """Of 60,000 samples: it lives beside the largest moment of every step."""
    frames = Frames()
    frames.train_indices = np.arange(60_000)
    batches = Batches(frames, _loop(tmp_path).settings)
    tracemalloc.start()
    try:
        chosen, _ = batches.of_step(5)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert chosen.dtype == np.int64
    assert kept_bytes < 60_000 * 2 + 8192


@pytest.mark.parametrize(("micro", "sizes"), [(4, [4, 4, 4]), (11, [11]), (20, [11])])
def test_all_batches_of_an_evaluation_are_of_one_size(
    tmp_path: Path, micro: int, sizes: list[int]
) -> None:
    """The last one reaches back: an operator that meets another shape generates code for it, and keeps it."""
    loop, seen = _loop(tmp_path, batch_size=20, micro_batch_size=micro), list[int]()
    forward = loop.model.forward
    loop.model.forward = lambda x: (seen.append(len(x)), forward(x))[1]
    loop.evaluate()
    assert seen == sizes


def test_a_batch_is_no_larger_than_the_split(tmp_path: Path) -> None:
    """There is one step to an epoch then, of every recording once."""
    loop = _loop(tmp_path, batch_size=1000, micro_batch_size=1000)
    batches = Batches(loop.frames, loop.settings)
    assert batches.steps_per_epoch == 1
    chosen, _ = batches.of_step(0)
    assert sorted(chosen) == sorted(loop.frames.train_indices)


def _spiking_net() -> nn.Module:
    torch.manual_seed(5)
    return models.create(
        "vgg5", in_shape=(1, 4, 4), num_classes=2, timesteps=2, static=True, width=2
    )


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_update_in_backward_is_the_same_training(tmp_path: Path, name: str) -> None:
    """Weights, statistics, optimizer state and metrics have the bits of a step after backward; no gradient is left."""
    loops = []
    for in_backward in (False, True):
        loop = _loop(
            tmp_path / str(in_backward),
            _spiking_net(),
            optimizer=name,
            micro_batch_size=10,
            update_in_backward=in_backward,
        )
        before = {key: tensor.clone() for key, tensor in loop.saving.tensors().items()}
        loop.warm_up()
        assert all(
            torch.equal(before[key], tensor) for key, tensor in loop.saving.tensors().items()
        )
        loop.run()
        assert all(p.grad is None for p in loop.model.parameters())
        loops.append(loop)
    assert _equal(*loops)
    assert loops[0].position == loops[1].position


def test_update_in_backward_stops_before_weights_are_lost(tmp_path: Path) -> None:
    """A loss that is not finite is noticed before the backward pass, which would write it into weights."""
    net = _spiking_net()
    with torch.no_grad():
        list(net.parameters())[-1].fill_(math.inf)  # the bias of the logits
    loop = _loop(tmp_path, net, micro_batch_size=10, update_in_backward=True)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(RevedgeError, match="the loss is nan at step 0"):
        loop.run()
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_the_network_learns_and_pages_are_given_back(tmp_path: Path) -> None:
    """The brighter half is learned; the frames' pages are dropped after every batch."""
    events: list[dict[str, Any]] = []
    loop = _loop(tmp_path, epochs=30, augment_pixels=0, events=events)
    assert loop.run()["test_accuracy"] == 1.0
    assert isinstance(loop.frames, Frames)
    assert loop.frames.dropped >= 2 * loop.total_steps


@pytest.mark.parametrize(
    ("every_s", "message"),
    [(1000.0, r"^the loss is (nan|inf) at step [12] "), (0.0, r"^(the loss is|weights are not)")],
)
def test_a_loss_that_is_not_finite_stops_before_the_update(
    tmp_path: Path, every_s: float, message: str
) -> None:
    """The error names the step and the rate; no checkpoint holds a weight that is not finite."""
    loop = _loop(tmp_path, learning_rate=1e30, checkpoint_every_s=every_s)
    with pytest.raises(RevedgeError, match=message) as caught:
        loop.run()
    assert "use a smaller --lr (now 1e+30); the last good checkpoint is of step" in str(
        caught.value
    )
    resumed = _loop(tmp_path)
    resumed.saving.restore()
    assert all(bool(t.isfinite().all()) for t in resumed.model.state_dict().values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """A gradient can overflow where the loss did not: the last good checkpoint stays the newest."""
    loop = _loop(tmp_path)
    loop.saving.save()
    with torch.no_grad():
        next(loop.model.parameters())[0] = math.inf
    with pytest.raises(
        RevedgeError, match=r"^weights are not finite after step 0; use a smaller --lr"
    ):
        loop.saving.save()
    resumed = _loop(tmp_path)
    resumed.saving.restore()
    assert all(bool(t.isfinite().all()) for t in resumed.model.state_dict().values())


def test_a_full_disk_in_the_middle_is_a_warning_and_at_the_end_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that cannot be written is reported and training goes on; the last one must be written."""
    events: list[dict[str, Any]] = []
    loop = _loop(tmp_path, events=events)
    real, saved = loop.saving.store.save, []

    def save(step: int, *rest: Any) -> Path:
        if step > 4:
            raise OSError(28, "No space left on device")
        saved.append(step)
        return real(step, *rest)

    monkeypatch.setattr(loop.saving.store, "save", save)
    with pytest.raises(RevedgeError, match=r"step 9 could not be written.*step 4\) is kept"):
        loop.run()
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert len(warnings) >= 4
    assert "No space left on device" in warnings[0]
    resumed = _loop(tmp_path)
    resumed.saving.restore()
    assert resumed.position.step == 4


def test_the_learning_rate_rises_and_falls() -> None:
    """Linear over the warm-up, its peak after it, half at the middle of the cosine, 0 at the end."""
    rates = [learning_rate_at(step, 104, 1.0, 4) for step in range(105)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert math.isclose(rates[54], 0.5)
    assert math.isclose(rates[104], 0.0, abs_tol=1e-12)
    assert learning_rate_at(0, 10, 1.0, 0) == 1.0


def test_the_first_steps_and_some_later_ones_are_checked(tmp_path: Path) -> None:
    """Steps 0, 1, 2, 500, 1000, ... compare rebuilt block inputs; the loop asks before every step."""
    from revedge.devices.build import _check_some_steps

    asked: list[str] = []

    class Model:
        def set_check(self, check: str) -> None:
            asked.append(check)

    for step in (0, 2, 3, 499, 500, 501):
        _check_some_steps(Model(), step)  # type: ignore[arg-type]
    assert asked == ["checksum", "checksum", "none", "none", "checksum", "none"]

    steps: list[int] = []
    loop = _loop(tmp_path, before_step=steps.append)
    loop.run()
    assert steps == list(range(loop.total_steps))
