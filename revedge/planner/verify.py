"""Runs a plan for two real steps in the trainer and compares what it takes with what was predicted."""

import json
import subprocess
from dataclasses import dataclass

from revedge import allocator, child
from revedge.errors import DeviceError
from revedge.planner.plan import Plan
from revedge.units import format_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What two steps, evaluations and checkpoints took: the trainer's resident peak plus the supervisor's share."""

    measured_peak_bytes: int
    step_s: float | None
    problem: str | None  # None: the plan holds
    of_memory: bool = True  # the problem is one of memory; else nothing was measured

    @property
    def holds(self) -> bool:
        """Whether the plan may be used."""
        return self.problem is None


def verify(plan: Plan, *, timeout_s: float = 3600.0) -> Verification:
    """Measure ``plan``; it must neither run out of memory nor exceed its prediction.

    Raises:
        DeviceError: the child ended without an answer.
    """
    done = subprocess.run(
        child.command("revedge.planner.rehearse_child"),
        input=json.dumps({"plan": plan.to_toml(), "steps": 2}),
        capture_output=True,
        env=child.environment(**allocator.preload()),
        text=True,
        check=False,
        timeout=timeout_s,
    )
    if done.returncode < 0:
        return Verification(
            measured_peak_bytes=plan.budget_bytes,
            step_s=None,
            problem=f"the measuring process was ended by signal {-done.returncode}, as happens "
            "where memory runs out",
        )
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DeviceError(f"the plan could not be verified: {last}") from None
    measured = int(found["peak_bytes"]) + plan.parts.get("supervisor_bytes", 0)
    problem = found.get("error")
    of_memory = problem is None or bool(found.get("out_of_memory"))
    if problem is None and measured > plan.predicted_peak_bytes:
        problem = (
            f"two real steps took {format_bytes(measured)}, "
            f"{format_bytes(measured - plan.predicted_peak_bytes)} more than predicted"
        )
    if problem is None and measured > plan.budget_bytes:
        problem = (
            f"two real steps took {format_bytes(measured)}, "
            f"{format_bytes(measured - plan.budget_bytes)} more than the budget"
        )
    step_s = found.get("step_s")
    if step_s is not None:  # the rehearsal lets two micro-batches stand for any number
        rounds = plan.batch_size // plan.micro_batch_size
        step_s *= rounds / min(2, rounds)
    return Verification(
        measured_peak_bytes=measured, step_s=step_s, problem=problem, of_memory=of_memory
    )
