"""Times training steps: run as a child. One JSON object on stdin, one JSON line for each pair on stdout. Or by `lines`.

``{"pairs": [[small setting, large setting], ...], "seconds": S}`` -> for each pair ``[[frames, least_s, most_s],
...]``: of some steps after the first, the least seconds of its threads on a core, and the most on a clock, which is
more where other programs want the cores too. Where the seconds are used up, only the first step of the small setting
is timed, then nothing any more (an empty list, as where a network cannot be made).
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from revedge import allocator
from revedge.planner.setting import Setting

_STEPS = 3


def steps_s(setting: Setting, end_s: float) -> list[tuple[float, float]]:
    """Return (seconds of a core per thread, seconds on a clock) of up to three steps after the first.

    Of the first where it is past ``end_s`` by then.
    """
    import torch

    from revedge.planner.step import Rehearsal

    torch.set_num_threads(setting.threads)
    rehearsal = Rehearsal(setting, setting.device)
    found: list[tuple[float, float]] = []
    for _ in range(_STEPS + 1):
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        rehearsal.train_step()
        if setting.device == "cuda":
            torch.cuda.synchronize()
        wall_s = time.perf_counter() - began_s
        cpu_s = (time.process_time() - began_cpu_s) / setting.threads
        found.append((min(cpu_s, wall_s) if setting.device == "cpu" else wall_s, wall_s))
        if time.perf_counter() > end_s:
            break
    return found[1:] or found


def points(pair: list[dict[str, Any]], end_s: float) -> list[list[float]]:
    """Return [frames, least_s, most_s] of both settings, or of the small one where time runs out."""
    from revedge.errors import RevedgeError

    found: list[list[float]] = []
    for values in pair:
        if time.perf_counter() > end_s:
            break
        setting = Setting.from_json(values)
        try:
            times = steps_s(setting, end_s)
        except (RevedgeError, RuntimeError, MemoryError, TypeError, ValueError):
            break
        least_s, most_s = min(cpu_s for cpu_s, _ in times), max(wall_s for _, wall_s in times)
        found.append([setting.timesteps * setting.micro_batch_size, least_s, most_s])
    return found


def lines(asked: Mapping[str, Any]) -> Iterator[list[list[float]]]:
    """Time all pairs, one after another."""
    import torch  # noqa: F401 - not in the time that is given

    end_s = time.perf_counter() + asked["seconds"]
    for pair in asked["pairs"]:
        yield points(pair, end_s)


def main() -> int:
    """Answer what is asked on stdin."""
    allocator.return_freed_memory()
    out, sys.stdout = sys.stdout, sys.stderr  # where code of the user's prints
    for line in lines(json.loads(sys.stdin.readline())):
        print(json.dumps(line), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
