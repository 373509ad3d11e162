"""The arena for large blocks, preloaded into a process of its own for each test."""

import pytest

from revedge import allocator, child

pytestmark = pytest.mark.skipif(not allocator.preload(), reason="no arena in this install")

_HEAD = """
import ctypes, os, random, resource, threading
from revedge.allocator import arena_bytes, trim
C = ctypes.CDLL(None, use_errno=True)
for name in ("malloc", "calloc", "realloc", "aligned_alloc"):
    getattr(C, name).restype = ctypes.c_void_p
size_t, ptr = ctypes.c_size_t, ctypes.c_void_p
C.malloc.argtypes, C.free.argtypes = [size_t], [ptr]
C.realloc.argtypes, C.calloc.argtypes = [ptr, size_t], [size_t, size_t]
C.aligned_alloc.argtypes = [size_t, size_t]
C.malloc_usable_size.argtypes, C.malloc_usable_size.restype = [ptr], size_t
KIB = 1024
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def fill(p, n, tag):
    ctypes.memset(p, tag, n)
def intact(p, n, tag):
    return ctypes.string_at(p, n) == bytes([tag]) * n
"""


def _run(run_python, code: str) -> str:
    done = run_python("-c", _HEAD + code, **child.environment(**allocator.preload()))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_random_use_keeps_contents_and_the_bound(run_python):
    """Thousands of random calls: nothing overlaps, everything is aligned, live + kept never passes the peak."""
    _run(
        run_python,
        """
random.seed(1)
blocks, most = {}, 0
for step in range(6000):
    kind = random.random()
    if blocks and kind < 0.45:
        p = random.choice(list(blocks)); n, tag = blocks.pop(p)
        assert intact(p, n, tag)
        if kind < 0.1:
            m = random.choice([1, 70 * KIB, 300 * KIB, n])
            q = C.realloc(p, m)
            assert intact(q, min(n, m), tag)
            fill(q, m, tag); blocks[q] = (m, tag)
        else:
            C.free(p)
    elif len(blocks) < 60:
        n, tag = random.randint(1, 400) * KIB + random.randint(0, 9), random.randint(1, 255)
        if kind < 0.6:
            p = C.calloc(n, 1); assert intact(p, n, 0)
        elif kind < 0.7:
            p = C.aligned_alloc(64, n // 64 * 64 + 64); assert p % 64 == 0
        else:
            p = C.malloc(n)
        assert p and p not in blocks and C.malloc_usable_size(p) >= n
        fill(p, n, tag); blocks[p] = (n, tag)
    live, kept, peak = arena_bytes()
    assert live + kept <= peak
    most = max(most, kept)
assert most > 0
for p, (n, tag) in blocks.items():
    assert intact(p, n, tag); C.free(p)
trim()
assert arena_bytes()[1] == 0
""",
    )


def test_a_repeated_step_takes_no_new_pages(run_python):
    """The second run of the same allocations is served from what was kept, and resident memory stands still."""
    _run(
        run_python,
        """
def step():
    held = []
    for n in (4096, 512, 2048, 128, 1024):
        p = C.malloc(n * KIB); fill(p, n * KIB, 7); held.append(p)
        if len(held) > 2: C.free(held.pop(0))
    for p in held: C.free(p)
start = arena_bytes()[0]
step()
before, top = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, rss()
for _ in range(50): step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages_of_one_step = 7808 * KIB // resource.getpagesize()
assert faults < pages_of_one_step / 10, faults
assert rss() <= top + 64 * KIB
assert arena_bytes()[2] <= start + (4096 + 512 + 2048) * KIB + 64 * KIB
""",
    )


def test_a_new_peak_costs_no_more_than_itself(run_python):
    """Kept blocks go back to the system before fresh pages would lift the process above its live bytes."""
    _run(
        run_python,
        """
small = [C.malloc(256 * KIB) for _ in range(64)]
for p in small: fill(p, 256 * KIB, 1)
base = rss()
for p in small: C.free(p)
big = C.malloc(20480 * KIB); fill(big, 20480 * KIB, 2)  # 16 MiB were live, none of it fits
assert rss() - base <= (20480 - 16384) * KIB + 256 * KIB, rss() - base
assert arena_bytes()[1] == 0
""",
    )


@pytest.mark.usefixtures("memory_limit")
def test_a_limit_on_memory_is_met_without_a_crash(run_python):
    """Under RLIMIT_DATA malloc returns NULL with ENOMEM, and works again once something is freed."""
    _run(
        run_python,
        """
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * KIB
first = C.malloc(8192 * KIB)
resource.setrlimit(resource.RLIMIT_DATA, (used + 16384 * KIB, resource.RLIM_INFINITY))
assert not C.malloc(32768 * KIB) and ctypes.get_errno() == 12
C.free(first)
second = C.malloc(12288 * KIB)
assert second
fill(second, 12288 * KIB, 3)
""",
    )


def test_threads_and_forks(run_python):
    """Blocks of threads do not mix, and a forked child can go on."""
    _run(
        run_python,
        """
bad = []
def work(tag):
    for i in range(300):
        n = (64 + (i * tag) % 200) * KIB
        p = C.malloc(n); fill(p, n, tag)
        if not intact(p, n, tag): bad.append(tag)
        C.free(p)
threads = [threading.Thread(target=work, args=(tag,)) for tag in (1, 2, 3, 4)]
for t in threads: t.start()
for t in threads: t.join()
assert not bad
pid = os.fork()
if pid == 0:
    p = C.malloc(256 * KIB); fill(p, 256 * KIB, 9)
    os._exit(0 if intact(p, 256 * KIB, 9) else 1)
assert os.waitpid(pid, 0)[1] == 0
""",
    )


@pytest.mark.usefixtures("memory_limit")
def test_what_is_held_back_is_for_small_blocks_and_code(run_python):
    """At a limit the large block fails first; 2 MiB of small ones and mappings of code still come, then none."""
    _run(
        run_python,
        """
import mmap
from revedge.allocator import hold_back
MIB = 1 << 20
kept = C.malloc(8 * MIB); fill(kept, 8 * MIB, 1)
def data():
    rows = open("/proc/self/status").read().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmData")) * KIB
limit = data() + 5 * MIB
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
before = rss()
assert hold_back(2 * MIB)
assert not hold_back(1 << 40) and hold_back(2 * MIB)
assert rss() - before < MIB // 2  # address space, not memory
assert not C.malloc(4 * MIB)  # 3 MiB are left to it
taken = [C.malloc(MIB) for _ in range(2)]
assert all(taken)
code, small = [], 0
try:
    while len(code) < 100:
        code.append(mmap.mmap(-1, 256 * KIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
except OSError:
    pass
assert 6 <= len(code) <= 14, len(code)  # of about 1 MiB that was left, and 2 MiB held back
assert data() <= limit
del code
assert not C.malloc(128 * KIB)  # there is room now, but the reserve was broken into
C.free(kept)
again = C.malloc(8 * MIB)  # what is kept can be used again: it takes nothing new
assert again and intact(again, 8, 1)
assert hold_back(MIB)
assert C.malloc(128 * KIB)
""",
    )


@pytest.mark.usefixtures("memory_limit")
def test_without_anything_held_back_kept_blocks_make_room_for_code(run_python):
    """A mapping that meets the limit gets what freed blocks hold."""
    _run(
        run_python,
        """
import mmap
C.free(C.malloc(4 << 20))
live, kept, peak = arena_bytes()
assert kept
resource.setrlimit(resource.RLIMIT_DATA, (1, 1))  # below what there is: nothing new at all
try:
    mmap.mmap(-1, 256 * KIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except OSError:
    pass
assert arena_bytes()[1] == 0
""",
    )


@pytest.mark.parametrize(
    ("name", "value"), [("REVEDGE_NO_ARENA", "1"), ("LD_PRELOAD", "libtcmalloc.so")]
)
def test_the_user_may_choose_otherwise(name, value, monkeypatch):
    """Switched off, or where another allocator is preloaded, ours is not."""
    monkeypatch.setenv(name, value)
    assert allocator.preload() == {}


def test_processes_without_it_say_so():
    """This process is served by the C library."""
    assert allocator.arena_bytes() is None


@pytest.mark.usefixtures("memory_limit")
def test_a_limit_moves_with_generated_code(run_python):
    """Address space that is writable and executable does not count, once; given back, it counts no more."""
    _run(
        run_python,
        """
import mmap
whole = ctypes.CDLL(None, use_errno=True)
whole.mmap.restype = ctypes.c_void_p
whole.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
whole.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
size, both = 256 * KIB, mmap.PROT_READ | mmap.PROT_WRITE
def limit():
    return resource.getrlimit(resource.RLIMIT_DATA)[0]
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 2 << 30))
codes = [whole.mmap(None, size, both, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0) for _ in range(3)]
for code in codes * 2:
    assert whole.mprotect(code, size, both | mmap.PROT_EXEC) == 0
assert limit() == (1 << 30) + 3 * size
for code in codes * 2:
    assert whole.mprotect(code, size, both) == 0
assert limit() == 1 << 30
large = whole.mmap(None, 8 * size, both, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
assert whole.mprotect(large, 8 * size, both | mmap.PROT_EXEC) == 0
assert limit() == 1 << 30  # too large for the code of a kernel
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
assert whole.mprotect(codes[0], size, both | mmap.PROT_EXEC) == 0
assert limit() == 1 << 30  # never above the hard limit
assert whole.mprotect(0, size, both) == -1 and ctypes.get_errno()
""",
    )
