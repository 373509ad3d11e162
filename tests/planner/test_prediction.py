"""Predictions hold: what a fresh process really takes is never more, and not much less."""

import dataclasses
import subprocess
import sys
from unittest import mock

import pytest
from planner_settings import LARGEST_EXCESS, SETTINGS, THREADS, plan_for

from revedge import child
from revedge.errors import DeviceError, UsageError
from revedge.planner import base, process
from revedge.planner.cost import PARTS, predict
from revedge.planner.setting import Setting
from revedge.planner.trace_child import trace
from revedge.planner.trace_client import TraceClient, TraceError
from revedge.planner.verify import verify

_ELSEWHERE = ("pool_bytes", "spread_bytes")  # of CUDA, and of rehearsed settings


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.model}-{s.strategy}")
def test_never_under_and_close(setting: Setting) -> None:
    """Two real steps in a fresh process take at most what was predicted, and not much less."""
    with TraceClient() as client:
        plan = plan_for(setting, client)
    assert tuple(plan.parts) == tuple(name for name in PARTS if name not in _ELSEWHERE)
    found = verify(plan)
    excess = (plan.predicted_peak_bytes - found.measured_peak_bytes) / found.measured_peak_bytes
    print(f"{setting.model} {setting.strategy}: predicted {excess:+.2%} above measured")
    assert found.holds, found.problem
    assert 0 <= excess <= LARGEST_EXCESS


def test_a_plan_that_was_too_low_is_refused() -> None:
    """A prediction below what two steps take does not hold, and the difference is named."""
    with TraceClient() as client:
        plan = plan_for(SETTINGS[0], client)
    low = {**plan.parts, "slack_bytes": 0, "activations_bytes": 0}
    found = verify(dataclasses.replace(plan, parts=low, predicted_peak_bytes=sum(low.values())))
    assert not found.holds
    assert "more than predicted" in str(found.problem)


def test_the_fence_stops_a_plan_above_its_budget() -> None:
    """Behind a budget of less than its activations the rehearsal runs out of memory, and says so."""
    with TraceClient() as client:
        plan = plan_for(SETTINGS[0], client)
    found = verify(
        dataclasses.replace(
            plan, budget_bytes=plan.predicted_peak_bytes - plan.parts["activations_bytes"] // 2
        )
    )
    assert not found.holds


def test_the_optimizer_is_counted_without_a_trace_of_its_own() -> None:
    """The answer for SGD comes from that for AdamW, and equals a trace with SGD to the byte."""
    pair = [dataclasses.replace(SETTINGS[0], optimizer=name) for name in ("adamw", "sgd")]
    with TraceClient() as client:
        for setting in pair:
            expected = trace(setting)
            del expected["sgd_bytes"]
            assert client.trace(setting) == expected
        assert client.asked <= 1


def test_answers_are_remembered() -> None:
    """A second client asks its process nothing, and gets the same bytes."""
    with TraceClient() as first:
        expected = first.trace(SETTINGS[0])
    with TraceClient() as second:
        assert second.trace(SETTINGS[0]) == expected
        assert second.asked == 0


def test_mistakes_come_back_as_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown model is a usage error, a failure names itself, a dead process is a device error."""
    with TraceClient() as client:
        with pytest.raises(UsageError, match="did you mean"):
            client.trace(dataclasses.replace(SETTINGS[0], model="revsresnet12"))
        with pytest.raises(TraceError, match="wings"):
            client.trace(dataclasses.replace(SETTINGS[0], model_options={"wings": 2}))
    monkeypatch.setattr(
        "revedge.planner.trace_client.child.command",
        lambda module: [sys.executable, "-m", "revedge.no_such_module"],
    )
    with TraceClient() as client, pytest.raises(DeviceError, match="no_such_module"):
        client.trace(dataclasses.replace(SETTINGS[0], timesteps=5))


def test_plan_and_train_share_what_was_measured() -> None:
    """`train` plans in a child of its own; what is remembered there is what `plan` has measured here."""
    code = "from revedge.planner.process import fingerprint; print(fingerprint())"
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, env=child.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == process.fingerprint()


def test_fingerprint_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured with and without the C kernels is not mixed up."""
    before = process.fingerprint(threads=1)
    assert before == process.fingerprint(threads=1) != process.fingerprint(threads=2)
    monkeypatch.setenv("REVEDGE_NO_NATIVE", "1")
    assert process.fingerprint(threads=1) != before


def test_base_counts_torch_for_the_trainer_only() -> None:
    """The trainer's base holds torch, the supervisor's stays under 25 MB; a second question measures nothing."""
    found = base.measure(THREADS)
    assert found.trainer_bytes("revsresnet11") > 150e6
    assert found.supervisor_bytes < 25e6
    with mock.patch.object(base, "probe", side_effect=AssertionError):
        again = base.measure(THREADS)
        assert again.supervisor_bytes == found.supervisor_bytes
        assert again.trainer_bytes("revsresnet67") == found.trainer_bytes("revsresnet11")


def test_a_network_without_onednn_has_a_smaller_base() -> None:
    """One small frame at a time is beneath oneDNN: its code is not loaded, and not counted."""
    large = dataclasses.replace(SETTINGS[2], threads=1)
    small = dataclasses.replace(large, timesteps=1, batch_size=1, micro_batch_size=1)
    small = dataclasses.replace(small, in_shape=(2, 16, 16), model_options={"width": 8})
    asked = mock.Mock(supervisor_bytes=0, **{"trainer_bytes.return_value": 0})
    with TraceClient() as client:
        for setting in (large, small):
            predict(setting, asked, client)
    assert [call.args for call in asked.trainer_bytes.call_args_list] == [
        ("vgg5", "blocked", "float32", None),
        ("vgg5", "none", "float32", None),
    ]


def test_the_planner_imports_no_torch() -> None:
    """Everything that `revedge plan` imports itself is free of torch."""
    code = (
        "import sys, revedge.planner.choose, revedge.planner.verify, revedge.planner.explain, "
        "revedge.cli.plan; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=child.environment(),
    )
    assert done.stdout.strip() == "[]"
