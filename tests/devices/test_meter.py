"""The meter sees what is allocated, the fence fences, the watch raises."""

import json
import mmap
import os
import subprocess
import sys
import time

import pytest

from revedge.devices import watch
from revedge.devices.meter import (
    PeakMeter,
    ProcessMeter,
    available_bytes,
    rss_peak_bytes,
    status_bytes,
    total_bytes,
)

MIB = 1 << 20
# The kernel counts resident pages per CPU and adds them up in batches of at most 64 pages per CPU and counter.
COUNTER_BYTES = 3 * 64 * 4096 * (os.cpu_count() or 1)


def _take(size_bytes: int) -> mmap.mmap:
    taken = mmap.mmap(-1, size_bytes)
    for place in range(0, size_bytes, mmap.PAGESIZE):
        taken[place] = 1
    return taken


def test_the_meter_sees_an_allocation() -> None:
    """Touched pages appear, freed pages go, the peak stays."""
    with ProcessMeter() as meter:
        before = meter.rss_bytes()
        taken = _take(64 * MIB)
        with_it = meter.rss_bytes()
        taken.close()
        after = meter.rss_bytes()
    assert abs(with_it - before - 64 * MIB) <= COUNTER_BYTES
    assert with_it - after >= 64 * MIB - COUNTER_BYTES
    assert rss_peak_bytes() >= with_it - COUNTER_BYTES


def test_an_ended_process_has_no_bytes() -> None:
    """A meter of a process that has ended reads 0; a process that never was is an error."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    with ProcessMeter(child.pid) as meter:
        assert meter.rss_bytes() > 0
        child.stdin.close()
        child.wait()
        assert meter.rss_bytes() == 0
    assert status_bytes(child.pid) == {}
    with pytest.raises(ProcessLookupError):
        ProcessMeter(child.pid)


def test_the_peak_is_of_both_processes_and_holds_what_no_sample_saw() -> None:
    """A child that takes and frees 80 MiB before the first sample still counts, through the kernel's own peak."""
    code = "x = bytearray(80 << 20); del x; print('ready', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    meter = PeakMeter()
    own = meter.peak_bytes
    meter.follow(child.pid)
    meter.sample()
    assert meter.now_bytes < own + 80 * MIB
    assert meter.peak_bytes >= own + 80 * MIB - COUNTER_BYTES
    child.stdin.close()
    child.stdout.close()
    child.wait()
    assert meter.sample() <= own + 8 * MIB
    meter.unfollow()


def test_a_sample_is_cheap() -> None:
    """2,000 samples of a process take under 100 ms (50 us each; about 2 us when nothing else runs)."""
    with ProcessMeter() as meter:
        began_s = time.process_time()
        for _ in range(2000):
            meter.rss_bytes()
    assert time.process_time() - began_s < 0.1


def test_available_is_less_than_total() -> None:
    """What may be taken is positive and no more than the machine has."""
    assert 0 < available_bytes() <= total_bytes()


@pytest.mark.usefixtures("memory_limit")
def test_the_fence_really_fences(run_python) -> None:
    """In a child fenced at +64 MiB a tensor of 32 MiB works, one of 96 MiB fails as out of memory."""
    code = """
import json, resource, torch
from revedge.devices import fence, oom
from revedge.devices.meter import status_bytes
torch.ones(4)
before = status_bytes()["VmData"]
limit = fence.fence_data(64 << 20)
ok = torch.ones(32 << 20, dtype=torch.uint8).numel()
try:
    torch.ones(96 << 20, dtype=torch.uint8)
    text = "it worked"
except RuntimeError as error:
    text = str(error)
hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
again = torch.ones(96 << 20, dtype=torch.uint8).numel()
print(json.dumps([limit - before, ok, oom.classify(text), again]))
"""
    done = run_python("-c", code)
    grown, ok, classified, again = json.loads(done.stdout)
    assert abs(grown - 64 * MIB) <= MIB
    assert (ok, classified, again) == (32 << 20, True, 96 << 20)


def test_the_watch_raises_over_the_budget() -> None:
    """Over the budget is a MemoryError that says both numbers; under it nothing happens."""
    used = watch.Watch(1).now_bytes()
    watch.Watch(used + 64 * MIB)()
    with pytest.raises(MemoryError, match=r"in use, the budget is 1\.0 MiB"):
        watch.Watch(MIB)()


def test_the_supervisor_imports_neither_torch_nor_numpy(run_python) -> None:
    """Everything that `revedge train` imports in the supervisor stays below 25 MB of resident bytes."""
    code = """
import json, sys
import revedge.cli.main
from revedge.cli import train
from revedge.devices import picture, preparation, supervisor
from revedge.devices.meter import ProcessMeter
names = [name for name in ("torch", "numpy", "psutil", "matplotlib") if name in sys.modules]
print(json.dumps([names, ProcessMeter().rss_bytes()]))
"""
    done = run_python("-c", code)
    names, rss_bytes = json.loads(done.stdout)
    assert names == []
    assert rss_bytes < 25_000_000


def test_the_meter_agrees_with_psutil() -> None:
    """RSS read from statm is what psutil reads, but for the pages touched between the two calls."""
    psutil = pytest.importorskip("psutil")
    ours = ProcessMeter().rss_bytes()
    assert abs(ours - psutil.Process().memory_info().rss) < MIB
