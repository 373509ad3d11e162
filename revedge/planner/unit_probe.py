"""Times parts of a network by themselves: run as a child. One JSON object on stdin, one JSON line per part on stdout.

``{"parts": [{"settings": [small, large], "run": i, "fork": j}, ...], "seconds": S}`` -> for each part ``[[frames,
least_s, most_s], ...]`` of one block of run i (of forks: fork j), forward and backward, as `time_probe` times steps.
Run -1 is the optimizer: ``[[values, least_s, most_s]]`` for so many values. Nothing (an empty list) where the seconds
are used up, or where it failed.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from revedge import allocator
from revedge.planner.setting import Setting

_RUNS = 3
_VALUES, _TENSORS = 1 << 16, 16


def measured(work: Callable[[], None], threads: int) -> tuple[float, float]:
    """Return the least seconds on a core per thread, and the most on a clock, of some runs after the first."""
    found: list[tuple[float, float]] = []
    for _ in range(_RUNS + 1):
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        work()
        wall_s = time.perf_counter() - began_s
        found.append((min(wall_s, (time.process_time() - began_cpu_s) / threads), wall_s))
    return min(cpu_s for cpu_s, _ in found[1:]), max(wall_s for _, wall_s in found[1:])


@functools.lru_cache(maxsize=4)
def _net(words: str) -> tuple[Any, Any]:
    """Return a network on the CPU, and its geometry: made once for all of its parts."""
    from revedge import models
    from revedge.planner.form.shape import net_of
    from revedge.planner.stack import shallower
    from revedge.planner.trace_child import geometry

    setting = Setting.from_json(json.loads(words))
    net = models.create(
        setting.model,
        in_shape=setting.in_shape,
        num_classes=setting.num_classes,
        timesteps=1,
        **shallower(setting)[0].model_options,
    )
    return net, net_of(geometry(setting))


def block_work(setting: Setting, run: int, fork: int) -> Callable[[], None]:
    """Return what runs one block of run ``run`` forward and backward, on frames of ``setting``."""
    import torch

    from revedge import engine
    from revedge.planner.stack import one_block

    same = replace(setting, timesteps=1, batch_size=1, micro_batch_size=1, strategy="reverse")
    same = replace(same, slab_bytes=None, span_count=None, membrane_count=None, chunk_bytes=None)
    same = replace(same, update_in_backward=False, static=False)
    net, geometry = _net(json.dumps(same.to_json()))
    part = net.runs()[run]
    if isinstance(part, engine.Residual):
        part = engine.Residual(one_block(part), on_grid=True)
    elif isinstance(part, engine.Coupling):
        f, g = one_block(part)
        part = engine.Coupling([f], [g], on_grid=True)
    elif isinstance(part, engine.Forks):
        part = engine.Forks([part.fork_list()[fork]])
    strategy = setting.strategy
    part.set_strategy(strategy if isinstance(strategy, str) else strategy[run])
    part.take_sizes(setting)
    engine.update_in_backward(part, (lambda p, g: None) if setting.update_in_backward else None)
    plane: tuple[int, ...] = setting.in_shape
    for each in geometry.runs[:run]:
        plane = each.work(plane)[1]
    for each in geometry.runs[run].forks[:fork]:
        plane = each.arms[0].of(plane)
    steps = 1 if setting.static and run == 0 else setting.timesteps
    x = torch.randn(steps, setting.micro_batch_size, *plane).mul_(256).round_().div_(256)
    x.requires_grad_(run > 0)
    upstream = torch.randn_like(part(x))

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.precision != "float32"):
            y = part(x)
        y.backward(upstream)
        for parameter in part.parameters():
            parameter.grad = None
        x.grad = None

    return work


def update_work(setting: Setting) -> Callable[[], None]:
    """Return what updates `_TENSORS` tensors of `_VALUES` values as the trainer does."""
    import torch

    from revedge.planner.step import Rehearsal

    net = replace(setting, model="vgg5", model_options={"width": 4}, strategy="reverse")
    small = Rehearsal(net, "cpu")
    small.parameters = [
        torch.nn.Parameter(torch.randn(_VALUES // _TENSORS)) for _ in range(_TENSORS)
    ]
    small.slots = [[torch.zeros_like(p) for p in small.parameters] for _ in small.slots]
    small.step_counts = [torch.zeros(()) for _ in small.step_counts and small.parameters]
    gradients = [(i, torch.randn_like(p)) for i, p in enumerate(small.parameters)]
    return lambda: small._update(gradients)


def points(part: dict[str, Any], end_s: float) -> list[list[float]]:
    """Return what was measured of one part."""
    from revedge.errors import RevedgeError

    found: list[list[float]] = []
    for values in part["settings"]:
        if time.perf_counter() > end_s:
            return []
        setting = Setting.from_json(values)
        try:
            if part["run"] < 0:
                return [[_VALUES, *measured(update_work(setting), setting.threads)]]
            work = block_work(setting, part["run"], part["fork"])
            frames = setting.timesteps * setting.micro_batch_size
            found.append([frames, *measured(work, setting.threads)])
        except (RevedgeError, RuntimeError, MemoryError, TypeError, ValueError):
            return []
    return found


def lines(asked: Mapping[str, Any]) -> Iterator[list[list[float]]]:
    """Time all parts, one after another."""
    import torch

    torch.set_num_threads(int(asked["threads"]))
    end_s = time.perf_counter() + asked["seconds"]
    for part in asked["parts"]:
        yield points(part, end_s)
    _net.cache_clear()


def main() -> int:
    """Answer what is asked on stdin."""
    allocator.return_freed_memory()
    for line in lines(json.loads(sys.stdin.readline())):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
