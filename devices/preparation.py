"""What happens before training: look at the data, plan, write the frame cache. All in one child process.

`python -m revedge.devices.preparation PARENT` reads a JSON request from stdin and answers with one JSON line. It ends
before the trainer begins, so neither numpy nor the planner's tables stay in the supervisor; and it ends when its parent
does.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

from revedge import child, errors
from revedge.devices.parent import die_with_parent
from revedge.errors import BudgetError, RevedgeError
from revedge.planner.descent import Rung, descend, dump
from revedge.planner.plan import Plan
from revedge.user_code import ForeignError, require_unchanged, traceback_text


@dataclass(frozen=True)
class Prepared:
    """A plan, the rungs below it, the folder of its frames, and what the search found, as JSON, if there was one."""

    plan: Plan
    cache: str
    ladder: str  # the text of ladder.json
    planning: str | None = None


def prepare(wanted: dict[str, Any]) -> Prepared:
    """Have a child process search a plan and prepare its data.

    Args:
        wanted: as `revedge.planner.request.Request.of` takes it, without the shape of the data.

    Raises:
        UsageError, DataError: as `revedge.data.prepare` and the search.
        BudgetError: nothing that was asked for fits; carries the floor.
        ModuleNotFoundError: a package that reads this data set is not installed.
    """
    return _prepared(run_child({"do": "search", "wanted": wanted}))


def prepare_plan(plan: Plan) -> Prepared:
    """Have a child process prepare the data of a plan that exists, and check that it fits to them."""
    return _prepared(run_child({"do": "given", "plan": plan.to_toml()}))


def prepare_ladder(plan: Plan) -> str:
    """Have a child process predict the rungs below a plan; returns the text of ladder.json."""
    return str(run_child({"do": "ladder", "plan": plan.to_toml()})["ladder"])


def run_child(request: dict[str, Any]) -> dict[str, Any]:
    """Run this module in a child with one request; raise what it raised.

    Raises:
        The child's own error: of the kind that it had there, with its words.
        RevedgeError: the child ended without an answer.
    """
    done = subprocess.run(
        child.command("revedge.devices.preparation", str(os.getpid())),
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        env=child.environment(),
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise RevedgeError(
            f"the training could not be prepared (exit code {done.returncode}); see the lines above"
        ) from None
    if "error" not in answer:
        return dict(answer)
    if answer["kind"] == "ModuleNotFoundError":
        raise ModuleNotFoundError(answer["error"], name=answer["name"])
    if answer["kind"] == "BudgetError":
        raise BudgetError(answer["error"], floor_bytes=answer["floor_bytes"])
    there = ForeignError(f"\n{answer['traceback']}")
    raise getattr(errors, answer["kind"], RevedgeError)(answer["error"]) from there


def main() -> int:
    """Answer one request."""
    request = json.loads(sys.stdin.readline())
    try:
        die_with_parent(int(sys.argv[1]))
        if request["do"] == "search":
            answer = _search(request["wanted"])
        elif request["do"] == "given":
            answer = _given(request["plan"])
        else:
            answer = {"ladder": dump(_rungs(Plan.from_toml(request["plan"])))}
    except (RevedgeError, ModuleNotFoundError) as error:
        kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in vars(errors)]
        answer = {
            "error": str(error),
            "kind": kinds[0] if kinds else type(error).__name__,
            "name": getattr(error, "name", None),
            "floor_bytes": getattr(error, "floor_bytes", None),
            "traceback": traceback_text(error),
        }
    print(json.dumps(answer), flush=True)
    return 0


def _prepared(answer: dict[str, Any]) -> Prepared:
    return Prepared(
        Plan.from_toml(answer["plan"]), answer["cache"], answer["ladder"], answer.get("planning")
    )


def _search(wanted: dict[str, Any]) -> dict[str, Any]:
    from revedge import data
    from revedge.planner import explain
    from revedge.planner.choose import choose
    from revedge.planner.precision import AUTO
    from revedge.planner.request import Request

    info = data.describe(wanted["data"], wanted["data_dir"])
    request = Request.of(
        wanted,
        timesteps=info.timesteps,
        in_shape=info.in_shape,
        num_classes=info.num_classes,
        static=info.static,
    )
    times = request.prefer == "speed" or request.precision == AUTO
    found = choose(request, timeline=True, rungs=True, times=times)
    plan = found.require()
    planning = json.dumps(explain.payload(found, request.budget_bytes))
    return {
        "plan": plan.to_toml(),
        "cache": _cache(plan),
        "ladder": dump(found.rungs),
        "planning": planning,
    }


def _given(text: str) -> dict[str, Any]:
    from revedge import data

    plan = Plan.from_toml(text)
    require_unchanged(plan.model, plan.model_sha256)  # here: a supervisor has no room for hashlib
    info = data.describe(plan.data, plan.data_dir)
    wanted = (plan.in_shape, plan.num_classes, plan.static)
    found = (tuple(info.in_shape), info.num_classes, info.static)
    if wanted != found:
        raise errors.UsageError(
            f"the plan is for frames {wanted[0]} and {wanted[1]} classes, data {plan.data!r} has {found[0]} and "
            f"{found[1]}; make a plan for this data with revedge plan"
        )
    rungs = _rungs(plan)
    parts = _parts(plan)
    if sum(parts.values()) > plan.predicted_peak_bytes:  # it was made on another machine
        text = replace(plan, predicted_peak_bytes=sum(parts.values()), parts=parts).to_toml()
    return {"plan": text, "cache": _cache(plan), "ladder": dump(rungs)}


def _rungs(plan: Plan) -> list[Rung]:
    from revedge.planner import base
    from revedge.planner.cost import predict
    from revedge.planner.trace_client import TraceClient

    bare = base.measure(plan.threads, plan.device)
    with TraceClient() as tracer:
        return descend(plan, lambda each: predict(each, bare, tracer))


def _parts(plan: Plan) -> dict[str, int]:
    """Return the predicted bytes of ``plan`` on this machine, as closely as `revedge plan` tells them."""
    from revedge.planner import base
    from revedge.planner.cost import predict
    from revedge.planner.rehearsed import closely
    from revedge.planner.setting import Setting
    from revedge.planner.trace_client import TraceClient

    setting, bare = Setting.of(plan), base.measure(plan.threads, plan.device)
    with TraceClient() as tracer:
        return dict(closely(plan, predict(setting, bare, tracer), tracer).parts)


def _cache(plan: Plan) -> str:
    from revedge import data

    return str(data.prepare(plan.data, plan.data_dir, plan.timesteps))


if __name__ == "__main__":
    sys.exit(main())
