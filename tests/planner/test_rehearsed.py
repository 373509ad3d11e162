"""Small trainings are rehearsed: their peak is measured beforehand, and told closely."""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from planner_settings import SETTINGS, THREADS, plan_for

from revedge import child
from revedge.planner import base, rehearse_child, rehearsed
from revedge.planner.choose import choose
from revedge.planner.cost import Prediction, predict
from revedge.planner.plan import Plan
from revedge.planner.process import answers
from revedge.planner.rehearsed import (
    GROWTH_BYTES,
    LOOSE_SPREAD_BYTES,
    MANY_MULTIPLICATIONS,
    MOST_LIVE_BYTES,
    MOST_MULTIPLICATIONS,
    MOST_STEPS,
    SPREAD_BYTES,
    closely,
)
from revedge.planner.request import Request
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient
from revedge.planner.verify import verify

SMALL = dataclasses.replace(SETTINGS[3], timesteps=3, batch_size=2, micro_batch_size=2)


@pytest.fixture
def client() -> Iterator[TraceClient]:
    with TraceClient() as found:
        yield found


def computed(setting: Setting, client: TraceClient) -> Prediction:
    return predict(setting, base.measure(setting.threads), client)


def never(*_: Any) -> Any:
    raise AssertionError("nothing has to be run")


@pytest.mark.parametrize("setting", [SMALL, SETTINGS[4]], ids=["store", "invert"])
def test_close_and_never_under(setting: Setting, client: TraceClient) -> None:
    """Another process takes at most what was rehearsed and the spread, and less by two spreads at most."""
    told = computed(setting, client)
    plan = plan_for(setting, client)
    close = closely(plan, told, client)
    assert "slack_bytes" not in close.parts
    assert all(size >= 0 for size in close.parts.values())
    for name in ("weights_bytes", "optimizer_bytes", "gradients_bytes", "activations_bytes"):
        assert close.parts[name] == told.parts[name]
    peak = close.predicted_peak_bytes
    plan = dataclasses.replace(plan, parts=dict(close.parts), predicted_peak_bytes=peak)
    found = verify(plan)
    assert found.holds, found.problem
    assert peak - found.measured_peak_bytes <= LOOSE_SPREAD_BYTES + close.parts["spread_bytes"]


def test_it_is_run_once(client: TraceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was rehearsed on this machine is remembered, and the same prediction comes back."""
    plan = plan_for(SMALL, client)
    first = closely(plan, computed(SMALL, client), client)
    monkeypatch.setattr(rehearsed, "answers", never)
    other = dataclasses.replace(plan, learning_rate=0.5, epochs=7, budget_bytes=8 << 30)
    assert closely(other, computed(SMALL, client), client) == first
    with pytest.raises(AssertionError):  # another loss runs other code
        closely(dataclasses.replace(plan, label_smoothing=0.1), first, client)


def measured(plan: Plan, steps: int) -> dict[str, Any]:
    """Measure in the child: of a trainer that this large process starts, the kernel would tell this one's peak."""
    found: dict[str, Any] = answers(
        "revedge.planner.rehearse_child", {"plan": plan.to_toml(), "steps": steps}
    )[-1]
    return found


def test_the_trainer_itself_is_run(client: TraceClient) -> None:
    """A step, an evaluation and a checkpoint, again and again; the budget is the trainer's, with its fence."""
    plan = plan_for(SMALL, client)
    found = measured(plan, 3)
    assert found.keys() == {"peak_bytes", "resting_bytes", "steps", "step_s", "same_addresses"}
    assert found["steps"] == 3
    assert 0 < found["step_s"] < 5
    weights = plan.parts["weights_bytes"] + plan.parts["optimizer_bytes"]
    assert weights < found["resting_bytes"] < found["peak_bytes"] < plan.predicted_peak_bytes
    tight = dataclasses.replace(plan, budget_bytes=plan.predicted_peak_bytes // 2)
    assert "used up before the first step" in measured(tight, 1)["error"]


def test_what_is_slow_ends_early(client: TraceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up, and two steps are made, no other is begun, and that is no error."""
    monkeypatch.setattr(rehearse_child, "PATIENCE_S", 0.0)
    began_s = time.monotonic()
    found = rehearse_child.measure(plan_for(SMALL, client), 100_000)
    assert time.monotonic() - began_s < 60
    assert "error" not in found
    assert found["peak_bytes"] > found["resting_bytes"]


@pytest.mark.parametrize(
    ("peak", "work", "device"),
    [
        (MOST_LIVE_BYTES + 1, 1, "cpu"),
        (1, int(MOST_MULTIPLICATIONS) // 2 + 1, "cpu"),
        (1, 1, "cuda"),
    ],
    ids=["memory", "work of two micro-batches", "cuda"],
)
def test_what_is_not_small_stays_computed(
    client: TraceClient, monkeypatch: pytest.MonkeyPatch, peak: int, work: int, device: str
) -> None:
    """Nothing is run for what takes much memory or many multiplications, or for a GPU."""
    monkeypatch.setattr(rehearsed, "answers", never)
    plan = dataclasses.replace(plan_for(SMALL, client), micro_batch_size=1, device=device)
    told = {"peak_bytes": peak, "multiplications": work}
    monkeypatch.setattr(client, "trace", lambda setting: told)
    plain = Prediction(parts={"base_bytes": 5})
    assert closely(plan, plain, client) is plain


@pytest.mark.parametrize(
    "answer", [[], [{"error": "no memory", "peak_bytes": 1, "resting_bytes": 1}]]
)
def test_a_rehearsal_that_fails_changes_nothing(
    client: TraceClient, monkeypatch: pytest.MonkeyPatch, answer: list[Any]
) -> None:
    """No answer, or one of memory that ran out: the computed prediction stays, and nothing is remembered."""
    monkeypatch.setattr(rehearsed, "answers", lambda module, asked: answer)
    setting = dataclasses.replace(SMALL, timesteps=6)
    told, plan = computed(setting, client), plan_for(setting, client)
    for _ in range(2):
        assert closely(plan, told, client) is told


def test_the_plan_is_told_closely_and_the_floor_is_computed() -> None:
    """A plan for here has measured parts and a lower peak than one for another board, at the same floor."""
    asked = Request(
        budget_bytes=4 << 30,
        data="random",
        in_shape=SMALL.in_shape,
        num_classes=10,
        model=SMALL.model,
        timesteps=3,
        model_options=dict(SMALL.model_options),
        batch_size=2,
        threads=THREADS,
    )
    close, safe = choose(asked, rungs=True), choose(asked, here=False)
    assert close.floor_bytes == safe.floor_bytes
    assert close.require().predicted_peak_bytes < safe.require().predicted_peak_bytes
    assert "spread_bytes" in close.require().parts
    assert "slack_bytes" in safe.require().parts
    assert Setting.of(close.require()) == Setting.of(safe.require())
    assert close.rungs[0].plan.parts == safe.require().parts


def test_children_lie_at_the_same_addresses_each_time() -> None:
    """Heap, library and hashes of two children are where they were; this process stays as it is."""
    if not Path("/proc/self/personality").exists():
        pytest.skip("not Linux")
    before = Path("/proc/self/personality").read_text()
    look = "import ctypes; print(id(object()), ctypes.addressof(ctypes.pythonapi.Py_IsInitialized), hash('a'))"
    with child.same_addresses():
        told = [
            subprocess.run(
                [sys.executable, "-c", look],
                env=child.environment(),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for _ in range(2)
        ]
        if Path("/proc/self/personality").read_text() == before:
            pytest.skip("a filter of system calls does not allow it")
    assert told[0] == told[1]
    assert Path("/proc/self/personality").read_text() == before


@pytest.mark.parametrize(
    ("threads", "steps", "same_addresses", "spread"),
    [
        (1, 10, True, SPREAD_BYTES),
        (2, 40, True, LOOSE_SPREAD_BYTES),
        (1, 40, False, LOOSE_SPREAD_BYTES),
        (1, 9, True, SPREAD_BYTES + GROWTH_BYTES),
    ],
)
def test_the_spread_has_what_a_short_rehearsal_cannot_see(
    client: TraceClient,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    steps: int,
    same_addresses: bool,
    spread: int,
) -> None:
    """Threads are counted less exactly, random addresses move pages, and in few steps the heap has not grown yet."""
    peak = 400 << 20
    found = {"steps": steps, "same_addresses": same_addresses}
    answer = [{"peak_bytes": peak, "resting_bytes": 300 << 20, "step_s": 0.1, **found}]
    monkeypatch.setattr(rehearsed, "answers", lambda module, asked: answer)
    setting = dataclasses.replace(SMALL, timesteps=4 + threads + steps + same_addresses, threads=1)
    told = computed(setting, client)
    plan = dataclasses.replace(plan_for(setting, client), threads=threads)
    close = closely(plan, told, client)
    supervisor = told.parts["supervisor_bytes"]
    assert close.predicted_peak_bytes == peak + supervisor + spread


@pytest.mark.parametrize(
    ("work", "steps"),
    [(MANY_MULTIPLICATIONS, MOST_STEPS), (MANY_MULTIPLICATIONS + 1, 1), (MOST_MULTIPLICATIONS, 1)],
)
def test_long_steps_are_made_once(
    client: TraceClient, monkeypatch: pytest.MonkeyPatch, work: float, steps: int
) -> None:
    """Of a step that takes seconds one is made."""
    asked: list[int] = []

    def answers(module: str, request: Any) -> list[Any]:
        asked.append(request["steps"])
        return []

    monkeypatch.setattr(rehearsed, "answers", answers)
    setting = dataclasses.replace(SMALL, timesteps=5)
    told, plan = computed(setting, client), plan_for(setting, client)
    traced = {"peak_bytes": 1, "multiplications": work}
    monkeypatch.setattr(client, "trace", lambda setting: traced)
    assert closely(plan, told, client) is told
    assert asked == [steps]
