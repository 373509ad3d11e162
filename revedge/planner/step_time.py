"""How long a training step will take, as an interval: two probes of the network at hand, corrected by real steps.

A step's time is almost a line in the frames of a micro-batch (T times its samples): what is done once per step, and
what is done per frame. So a child process (`time_probe.py`) trains the very network, way and frames for some steps at
two sizes, at most `MOST_FRAMES` frames each, and the line through both is followed to the real size. Unlike memory
this is extrapolated where the micro-batch is larger; the interval widens with the distance. Free of torch.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from revedge.planner.memory import Memory
from revedge.planner.process import Ask, answers, fingerprint
from revedge.planner.setting import Setting

MOST_FRAMES = 64
FEWEST_SHARE = 4  # the smaller probe has this part of the larger one's frames
# Half widths, in shares of the time: of 16 drawn networks 15 took a time within (benchmarks/step_time.py).
_NEAR, _PER_DOUBLING, _MEASURED = 0.2, 0.06, 0.1
# A step that took so much longer on the clock than on a core shared it with other programs.
_BUSY_SHARE, _BUSY_LEAST_S = 0.3, 0.002
_BUSY_REMEMBERED_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """An interval for the seconds of one optimizer step, and where it is from."""

    least_s: float
    most_s: float
    source: str  # "probes", "steps", "units" or "factors"

    @property
    def middle_s(self) -> float:
        """The geometric middle."""
        return math.sqrt(self.least_s * self.most_s)

    def times(self, factor: float, source: str) -> "StepTime":
        """Return the interval of what takes ``factor`` times as long."""
        return StepTime(least_s=self.least_s * factor, most_s=self.most_s * factor, source=source)

    def corrected(self, steps_s: Sequence[float]) -> "StepTime":
        """Return what the first real steps say; the first of several, which loads code, is left out.

        Args:
            steps_s: seconds of each optimizer step so far; where there is none the estimate stays.
        """
        steady = list(steps_s[1:] or steps_s)
        if not steady:
            return self
        middle_s = statistics.median(steady)
        spread = statistics.median(abs(each - middle_s) for each in steady) / middle_s
        half = 1 + _MEASURED / math.sqrt(len(steady)) + 2 * spread
        return StepTime(least_s=middle_s / half, most_s=middle_s * half, source="steps")

    def to_json(self) -> dict[str, float | str]:
        """Return plain values."""
        return {"least_s": self.least_s, "most_s": self.most_s, "source": self.source}


def probed(setting: Setting, most_frames: int) -> Setting:
    """Return ``setting`` with at most so many frames in a micro-batch, and one micro-batch in a batch.

    Samples are left out first, then time steps.
    """
    timesteps = min(setting.timesteps, most_frames)
    samples = max(1, min(setting.micro_batch_size, most_frames // timesteps))
    return replace(setting, timesteps=timesteps, batch_size=samples, micro_batch_size=samples)


def measure(
    settings: Sequence[Setting], *, seconds: float = 10.0, ask: Ask | None = None
) -> list[StepTime | None]:
    """Return the time of a step of each; None where its probe failed or there was no time left for it.

    Takes about ``seconds`` at most (a step that has begun is finished), nothing for what is remembered: for good, or
    for ten minutes if the machine was busy. ``ask``: a process that is at hand; None starts one.
    """
    memory = Memory(f"times-{fingerprint()}.json")
    unknown = [each for each in settings if memory.get(each.key()) is None]
    for setting, points in zip(unknown, _points(unknown, seconds, ask), strict=False):
        if points:
            memory.set(setting.key(), {"points": points}, for_s=remembered_s(points))
    memory.save()
    known = [memory.get(each.key()) for each in settings]
    return [
        None if found is None else followed(each, found["points"])
        for each, found in zip(settings, known, strict=True)
    ]


def remembered_s(points: Sequence[Sequence[float]]) -> float | None:
    """Return for how many seconds ``points`` are to be remembered; None, for good, if the machine was not busy.

    Args:
        points: as `followed` has them.
    """
    busy = any(most > least + max(_BUSY_LEAST_S, _BUSY_SHARE * least) for _, least, most in points)
    return _BUSY_REMEMBERED_S if busy else None


def _points(
    settings: Sequence[Setting], seconds: float, ask: Ask | None
) -> list[list[list[float]]]:
    """Ask the child: for each setting [[frames, least seconds, most seconds], ...], empty where it failed."""
    if not settings:
        return []
    pairs = [
        [probed(each, frames).to_json() for frames in (MOST_FRAMES // FEWEST_SHARE, MOST_FRAMES)]
        for each in settings
    ]
    return (ask or answers)("revedge.planner.time_probe", {"pairs": pairs, "seconds": seconds})


def followed(setting: Setting, points: Sequence[Sequence[float]]) -> StepTime:
    """Follow the line through the probes to the frames of a micro-batch, and take as many micro-batches.

    Args:
        setting: whose step is to be told.
        points: [frames, least seconds, most seconds] of one or two smaller steps.
    """
    frames = setting.timesteps * setting.micro_batch_size
    (few, least_few, most_few), (many, least_many, most_many) = points[0], points[-1]
    if many > few:
        # Of two noisy times the smaller one may be the larger; a step never gets faster with more frames.
        least = _line(few, least_few, many, least_many, frames)
        most = _line(few, most_few, many, most_many, frames)
    else:
        least, most = least_many * frames / many, most_many * frames / many
    half = 1 + _NEAR + _PER_DOUBLING * max(0.0, math.log2(frames / many))
    rounds = setting.batch_size // setting.micro_batch_size
    low, high = sorted((least, most))
    return StepTime(least_s=rounds * low / half, most_s=rounds * high * half, source="probes")


def _line(few: float, few_s: float, many: float, many_s: float, frames: float) -> float:
    slope = max(0.0, many_s - few_s) / (many - few)
    return max(many_s + slope * (frames - many), min(few_s, many_s) * min(1.0, frames / many))
