"""How long a step takes, summed from its parts: each distinct block under its strategy, timed by itself at two sizes.

A net is a few kinds of blocks, each some times. So what was measured for one depth tells every depth, and a mixture of
strategies costs no probe of its own. Between the sizes, and beyond, a part's time is a line in the frames of a
micro-batch, as that of a step (`step_time.py`). Measured against whole steps: README.md. Free of torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from revedge.planner.form.shape import Net, Plane
from revedge.planner.memory import Memory
from revedge.planner.process import Ask, answers, fingerprint
from revedge.planner.setting import Setting
from revedge.planner.step_time import (
    FEWEST_SHARE,
    MOST_FRAMES,
    StepTime,
    followed,
    probed,
    remembered_s,
)


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` equal blocks of a run; ``key`` names all that their time depends on."""

    key: str
    count: float
    request: Mapping[str, Any]


def parts_of(net: Net, setting: Setting) -> Iterator[Part]:
    """Yield the parts of a step: the blocks of every run, and the update."""
    plane: Plane = setting.in_shape
    for index, run in enumerate(net.runs):
        strategy = (
            setting.strategy if isinstance(setting.strategy, str) else setting.strategy[index]
        )
        each = plane
        for place, fork in enumerate(run.forks):
            yield _part(setting, (fork, each, strategy), 1, index, place, strategy)
            each = fork.arms[0].of(each)
        if not run.forks:
            facts = (run.kind, run.branches, plane, strategy, index == 0)
            yield _part(setting, facts, run.count, index, 0, strategy)
        plane = run.work(plane)[1]
    values = sum(size // 4 * count for size, count in net.parameters.items())
    request = {"settings": [setting.to_json()], "run": -1, "fork": 0}
    yield Part(f"update {setting.optimizer} {setting.threads}", values, request)


def _part(setting: Setting, facts: object, count: int, run: int, fork: int, strategy: str) -> Part:
    pair = [probed(setting, frames) for frames in (MOST_FRAMES // FEWEST_SHARE, MOST_FRAMES)]
    sizes = [(each.timesteps, each.micro_batch_size) for each in pair]
    cuts = (setting.slab_bytes, setting.span_count, setting.membrane_count, setting.chunk_bytes)
    ways = (*cuts, setting.update_in_backward, setting.precision, setting.threads)
    settings = [{**each.to_json(), "strategy": strategy} for each in pair]
    key = repr((facts, sizes, ways, setting.static))
    return Part(key, count, {"settings": settings, "run": run, "fork": fork})


def measure(
    nets: Sequence[tuple[Net | None, Setting]], *, seconds: float = 10.0, ask: Ask | None = None
) -> list[StepTime | None]:
    """Return the time of a step of each; None where it has no geometry, or for a part of it no time was left.

    Parts are probed in the order of ``nets``, for about ``seconds`` at most, and remembered; by ``ask`` where a
    process is at hand, else by one of their own.
    """
    memory = Memory(f"units-{fingerprint()}.json")
    every = [[] if net is None else list(parts_of(net, setting)) for net, setting in nets]
    wanted = {part.key: part for parts in every for part in parts if memory.get(part.key) is None}
    if wanted:
        asked = {
            "parts": [part.request for part in wanted.values()],
            "seconds": seconds,
            "threads": nets[0][1].threads,
        }
        for key, found in zip(wanted, _points(asked, ask), strict=False):
            if found:
                memory.set(key, {"points": found}, for_s=remembered_s(found))
        memory.save()
    known = {part.key: memory.get(part.key) for parts in every for part in parts}
    return [
        _summed(setting, [(part, known[part.key]) for part in parts])
        for (_, setting), parts in zip(nets, every, strict=True)
    ]


def _summed(
    setting: Setting, parts: Sequence[tuple[Part, Mapping[str, Any] | None]]
) -> StepTime | None:
    least = most = 0.0
    if not parts:
        return None
    for part, found in parts:
        if found is None:
            return None
        if part.request["run"] < 0:
            values, least_s, most_s = found["points"][0]
            least += least_s * part.count / values
            most += most_s * part.count / values
            continue
        one = followed(setting, found["points"])
        least += one.least_s * part.count
        most += one.most_s * part.count
    return StepTime(least_s=least, most_s=most, source="units")


def _points(asked: Mapping[str, Any], ask: Ask | None) -> list[list[list[float]]]:
    return (ask or answers)("revedge.planner.unit_probe", asked)
