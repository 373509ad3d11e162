"""What `verify` makes of the answer of its measuring process; real ones are measured in test_prediction.py."""

import json
import subprocess
from typing import Any

import pytest

from revedge.errors import DeviceError
from revedge.planner.plan import Plan
from revedge.planner.verify import Verification, verify

MIB = 1 << 20
SUPERVISOR = 30 * MIB


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that verifies a plan of 8 samples, as if the process had ended like this."""

    def told(
        code: int = 0,
        errors: str = "",
        *,
        budget: int = 400 * MIB,
        predicted: int = 330 * MIB,
        micro: int = 8,
        **found: Any,
    ) -> Verification:
        parts = {"base_bytes": predicted - SUPERVISOR, "supervisor_bytes": SUPERVISOR}
        plan = Plan(
            model="vgg5",
            data="random",
            in_shape=(2, 8, 8),
            num_classes=4,
            timesteps=2,
            batch_size=8,
            micro_batch_size=micro,
            budget_bytes=budget,
            predicted_peak_bytes=predicted,
            parts=parts,
        )
        out = f"torch says hello\n{json.dumps(found)}\n" if found else ""
        done = subprocess.CompletedProcess([], code, out, errors)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        return verify(plan)

    return told


def test_a_plan_holds_up_to_its_last_byte(answered: Any) -> None:
    """The trainer's peak and the supervisor's share are the prediction exactly, and the budget."""
    found = answered(peak_bytes=300 * MIB, budget=330 * MIB)
    assert (found.measured_peak_bytes, found.problem) == (330 * MIB, None)
    assert found.holds


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peak_bytes": 301 * MIB}, "two real steps took 331.0 MiB, 1.0 MiB more than predicted"),
        (
            {"peak_bytes": 300 * MIB, "budget": 329 * MIB},
            "two real steps took 330.0 MiB, 1.0 MiB more than the budget",
        ),
        (
            {"peak_bytes": 301 * MIB, "budget": 329 * MIB},
            "two real steps took 331.0 MiB, 1.0 MiB more than predicted",
        ),
        ({"code": -9}, "the measuring process was ended by signal 9"),
        ({"peak_bytes": 5, "error": "no memory", "out_of_memory": True}, "no memory"),
    ],
)
def test_a_plan_that_does_not_hold(answered: Any, changes: dict[str, Any], says: str) -> None:
    """It says by how much, or how the process ended: a problem of memory."""
    found = answered(**changes)
    assert not found.holds
    assert found.problem.startswith(says)
    assert found.of_memory


def test_an_error_of_another_kind_is_told(answered: Any) -> None:
    """A larger budget would be no remedy."""
    found = answered(peak_bytes=5, error="device 'cuda' is not there")
    assert (found.problem, found.of_memory) == ("device 'cuda' is not there", False)


def test_no_answer_is_an_error(answered: Any) -> None:
    """With the last that the process said, or else its exit code."""
    with pytest.raises(DeviceError, match=r"could not be verified: ImportError: no torch$"):
        answered(1, "Traceback\nImportError: no torch\n")
    with pytest.raises(DeviceError, match="exit status 3"):
        answered(3)


@pytest.mark.parametrize(("micro", "step_s"), [(8, 1.5), (4, 1.5), (2, 3.0), (1, 6.0)])
def test_a_step_is_of_all_its_micro_batches(answered: Any, micro: int, step_s: float) -> None:
    """Two were measured for any number; one where there is only one."""
    assert answered(peak_bytes=1, step_s=1.5, micro=micro).step_s == step_s
