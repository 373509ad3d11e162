"""The caching allocator of CUDA, replayed: each rule with numbers worked out by hand."""

import random

import pytest

from revedge.planner.cuda_pool import CudaPool, reserved_bytes
from revedge.planner.setting import Setting
from revedge.planner.trace_child import trace

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size_bytes", "reserved", "allocated"),
    [
        (0, 0, 0),
        (1, 2 * MIB, 512),
        (513, 2 * MIB, 1024),
        (MIB, 2 * MIB, MIB),
        (MIB + 1, 20 * MIB, MIB + 512),
        (10 * MIB - 512, 20 * MIB, 10 * MIB - 512),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # the rest of 1 MiB is not split off
        (33 * MIB + 5, 34 * MIB, 34 * MIB),
    ],
)
def test_a_first_block(size_bytes: int, reserved: int, allocated: int) -> None:
    """What the driver is asked for, and what the block takes of it."""
    pool = CudaPool()
    pool.allocate(1, size_bytes)
    assert (pool.reserved_bytes, pool.allocated_bytes) == (reserved, allocated)
    pool.free(1)
    assert (pool.reserved_bytes, pool.allocated_bytes) == (reserved, 0)


def test_a_segment_is_shared_and_merged() -> None:
    """Two blocks of 9 MiB share one segment of 20; when both are free there is room for one of 20 MiB."""
    pool = CudaPool()
    pool.allocate(1, 9 * MIB)
    pool.allocate(2, 9 * MIB)
    assert pool.reserved_bytes == 20 * MIB
    pool.allocate(3, 9 * MIB)
    assert pool.reserved_bytes == 40 * MIB
    pool.free(1)
    pool.free(2)
    pool.allocate(4, 20 * MIB)
    assert pool.reserved_bytes == 40 * MIB


def test_a_hole_that_is_too_small_is_fragmentation() -> None:
    """Free bytes on both sides of a living block do not serve what is larger than either."""
    pool = CudaPool()
    for name in range(4):
        pool.allocate(name, 5 * MIB)  # one segment
    pool.free(0)
    pool.free(2)
    pool.allocate(9, 6 * MIB)
    assert pool.reserved_bytes == 40 * MIB


def test_the_best_fit_is_taken() -> None:
    """Of two holes the smaller one that is large enough is used, so that the larger one still serves."""
    pool = CudaPool()
    for name, size in ((0, 12), (1, 30), (2, 12)):
        pool.allocate(name, size * MIB)
    pool.free(1)
    pool.free(2)
    pool.allocate(3, 12 * MIB)
    pool.allocate(4, 30 * MIB)
    assert pool.reserved_bytes == 54 * MIB


def test_pools_do_not_mix() -> None:
    """A small block never comes from a free large segment."""
    pool = CudaPool()
    pool.allocate(0, 15 * MIB)
    pool.free(0)
    pool.allocate(1, 1000)
    assert pool.reserved_bytes == 16 * MIB + 2 * MIB


def test_steps_repeat_and_weights_stay() -> None:
    """What a step frees is used again by the next; what it leaves is taken once."""
    step = [(0, 4 * MIB), (1, 40 * MIB), (2, 30 * MIB), (1, 0), (3, 16 * MIB), (2, 0), (3, 0)]
    assert reserved_bytes(step, steps=1) == reserved_bytes(step, steps=9) == (20 + 40 + 30) * MIB


def test_nothing_is_lost_or_counted_twice() -> None:
    """After any sequence all blocks of a segment make up its size, and freeing everything leaves whole segments."""
    rng, pool, living = random.Random(0), CudaPool(), dict[int, int]()
    for name in range(3000):
        if living and rng.random() < 0.5:
            gone = rng.choice(list(living))
            pool.free(gone)
            del living[gone]
        size = int(2 ** rng.uniform(1, 25))
        pool.allocate(name, size)
        living[name] = size
        assert sum(living.values()) <= pool.allocated_bytes <= pool.reserved_bytes
    for name in living:
        pool.free(name)
    assert pool.allocated_bytes == 0
    free = [block for blocks in pool._free.values() for block in blocks]
    assert sum(block.size_bytes for block in free) == pool.reserved_bytes
    assert all(block.before is None and block.after is None for block in free)


def test_a_trace_says_what_cuda_reserves() -> None:
    """For CUDA the pool stands in the trace: at least what lives at the peak, rounded to segments, and not twice it."""
    setting = Setting(
        model="revsresnet11",
        in_shape=(2, 32, 32),
        num_classes=10,
        timesteps=4,
        batch_size=8,
        micro_batch_size=8,
        strategy="reverse",
        device="cuda",
    )
    found = trace(setting)
    assert found["reserved_bytes"] % (2 * MIB) == 0
    assert found["peak_bytes"] * 0.9 < found["reserved_bytes"] < 2 * found["peak_bytes"] + 40 * MIB
