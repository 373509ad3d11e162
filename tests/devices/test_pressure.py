"""What is decided when others take memory, what a guard orders over the budget, and what the trainer does about it."""

import io
import signal
import time
from collections.abc import Iterator

import pytest

from revedge.devices import admission, meter, oom, orders, watch
from revedge.devices.guard import Guard
from revedge.devices.orders import Orders
from revedge.devices.pressure import GIVING_S, Look, Pressure
from revedge.devices.progress import Progress
from revedge.errors import BudgetError

from .conftest import make_plan

MIB = 1 << 20


def _look(now_s: float, available_mib: int, stalled: float = 0.0, training_mib: int = 300) -> Look:
    return Look(
        now_s=now_s,
        available_bytes=available_mib * MIB,
        stalled_percent=stalled,
        training_bytes=training_mib * MIB,
        peak_bytes=400 * MIB,
    )


def test_memory_falls_and_comes_back() -> None:
    """Give back at once, pause if that was not enough, go on when the whole peak has room again."""
    pressure = Pressure(100 * MIB, pause_limit_s=10.0)
    assert pressure.look(_look(0, 101)) == orders.GO_ON
    assert pressure.look(_look(1, 99)) == orders.GIVE_BACK
    assert pressure.look(_look(1 + GIVING_S / 2, 99)) == orders.GIVE_BACK
    assert pressure.look(_look(1 + GIVING_S, 99)) == orders.PAUSE
    # 100 MiB are missing to the peak: with 199 the reserve would be broken into again.
    assert pressure.look(_look(3, 199)) == orders.PAUSE
    assert pressure.look(_look(4, 200)) == orders.GO_ON


def test_what_was_given_back_is_enough() -> None:
    """Then nothing is paused."""
    pressure = Pressure(100 * MIB)
    assert pressure.look(_look(0, 50)) == orders.GIVE_BACK
    assert pressure.look(_look(GIVING_S, 150)) == orders.GO_ON


def test_a_pause_has_a_limit() -> None:
    """Past it the step is given up, whatever comes."""
    pressure = Pressure(100 * MIB, pause_limit_s=10.0)
    for now_s, expected in (
        (0, orders.GIVE_BACK),
        (1, orders.PAUSE),
        (10.9, orders.PAUSE),
        (11, orders.GIVE_UP),
    ):
        assert pressure.look(_look(now_s, 50)) == expected
    assert pressure.look(_look(12, 5000)) == orders.GIVE_UP
    pressure.reset()
    assert pressure.look(_look(13, 5000)) == orders.GO_ON


def test_a_machine_that_stands_still_for_memory_is_short_of_it() -> None:
    """PSI counts where MemAvailable looks well, as it does with compressed swap."""
    pressure = Pressure(100 * MIB)
    assert pressure.look(_look(0, 5000, stalled=50.0)) == orders.GIVE_BACK
    assert pressure.look(_look(1, 5000, stalled=50.0)) == orders.PAUSE
    assert pressure.look(_look(2, 5000, stalled=50.0)) == orders.PAUSE
    assert pressure.look(_look(3, 5000, stalled=1.0)) == orders.GO_ON


@pytest.fixture
def said() -> list[str]:
    """Return where the guard's messages go."""
    return []


@pytest.fixture
def watched(said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """Return a guard of this process alone, with a budget 50 MiB above what it takes; memory is plenty."""
    monkeypatch.setattr(meter, "available_bytes", lambda: 1 << 50)
    monkeypatch.setattr(meter, "stalled_percent", lambda: 0.0)
    monkeypatch.setattr(meter, "swap_bytes", lambda pid=None: 0)
    budget = meter.ProcessMeter().rss_bytes() + 50 * MIB
    made = Guard(budget, said.append)
    yield made
    made.close()


class _Trainer:
    """Stands for the trainer: no bytes."""

    pid = -1

    def rss_bytes(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is open."""


def _samples(watched: Guard, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        watched.sample()
        time.sleep(0.01)


def test_swap_counts_as_memory_and_over_the_budget_ends_the_step(
    watched: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resident bytes are under the budget, with the swapped ones they are over it; the reason says so."""
    monkeypatch.setattr(watched.meter, "_trainer", _Trainer())
    _samples(watched, 0.1)
    assert watched.order == orders.GO_ON
    monkeypatch.setattr(meter, "swap_bytes", lambda pid=None: 30 * MIB)
    _samples(watched, 0.1)
    assert watched.order == orders.GIVE_BACK
    _samples(watched, 0.3)
    assert watched.order == orders.GIVE_UP
    assert "60.0 MiB of it in swap" in watched.reason
    assert not watched.others
    assert watched.meter.peak_bytes > watched.budget_bytes


def test_the_user_is_told_of_a_pause_and_of_its_end(
    watched: Guard, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each, with the bytes."""
    monkeypatch.setattr(meter, "available_bytes", lambda: 7 * MIB)
    _samples(watched, GIVING_S + 0.2)
    assert watched.order == orders.PAUSE
    monkeypatch.setattr(meter, "available_bytes", lambda: 1 << 50)
    _samples(watched, 0.1)
    assert watched.order == orders.GO_ON
    assert len(said) == 2
    assert "paused: other programs left the machine 7.0 MiB" in said[0]
    assert "has memory again" in said[1]


def test_no_signal_before_the_trainer_listens(
    watched: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python ends at a signal it does not handle; the order stands there all the same."""
    sent: list[int] = []
    monkeypatch.setattr("revedge.devices.orders.os.kill", lambda pid, number: sent.append(number))
    monkeypatch.setattr(watched.meter, "follow", lambda pid: None)
    watched.follow(1, 0)
    monkeypatch.setattr(meter, "available_bytes", lambda: 0)
    watched.sample()
    assert (watched.order, sent) == (orders.GIVE_BACK, [])
    watched.started(1)
    assert sent == [orders.SIGNAL]


def test_the_trainer_obeys_between_two_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving back happens at the signal, once; giving up raises out of whatever runs."""
    trims: list[int] = []
    monkeypatch.setattr("revedge.allocator.trim", lambda: trims.append(1))
    wanted = Orders()
    eye = watch.Watch(1 << 50, wanted=wanted)
    before = signal.getsignal(orders.SIGNAL)
    try:
        eye.listen()
        wanted.give(orders.GIVE_BACK, None)
        signal.raise_signal(orders.SIGNAL)
        eye()
        assert trims == [1]
        wanted.give(orders.PAUSE, None)
        assert eye.paused()
        wanted.give(orders.GO_ON, None)
        eye()
        assert not eye.paused()
        wanted.give(orders.GIVE_UP, None)
        with pytest.raises(MemoryError, match="supervisor ended this step"):
            signal.raise_signal(orders.SIGNAL)
        with pytest.raises(MemoryError):
            eye()
        eye.listen(listening=False)
        signal.raise_signal(orders.SIGNAL)
        # A function would be forgotten while Python ends, and the next signal would end the process with an error.
        assert signal.getsignal(orders.SIGNAL) is signal.SIG_IGN
    finally:
        signal.signal(orders.SIGNAL, before)
        wanted.close()


def test_an_order_reaches_the_other_process() -> None:
    """The page is opened by the inherited file descriptor; a level that was set before is read."""
    ours = Orders()
    ours.give(orders.PAUSE, None)
    theirs = Orders(ours.handle)
    assert theirs.now() == orders.PAUSE
    ours.give(orders.GIVE_UP, None)
    assert theirs.now() == orders.GIVE_UP
    ours.close()


def test_a_look_of_the_trainer_is_cheap() -> None:
    """2,000 looks of the watch, orders included, take under 100 ms (50 us each; about 5 us when nothing else runs)."""
    eye = watch.Watch(1 << 50, wanted=Orders())
    began_s = time.process_time()
    for _ in range(2000):
        eye()
        eye.paused()
    assert time.process_time() - began_s < 0.1


def test_admission_asks_the_budget_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused: over the budget, over what the machine has left beside its reserve; the floor stands in the error."""
    monkeypatch.delenv("REVEDGE_RESERVE", raising=False)
    monkeypatch.setattr(meter, "total_bytes", lambda: 8 << 30)
    monkeypatch.setattr(meter, "available_bytes", lambda: 2 << 30)
    plan = make_plan(budget_bytes=3 << 30)
    admission.admit(plan)
    reserve = admission.reserve_bytes()
    assert reserve == (8 << 30) // 20
    assert admission.running_reserve_bytes() == reserve - reserve // 2
    monkeypatch.setattr(meter, "available_bytes", lambda: reserve + (399 << 20))
    with pytest.raises(BudgetError, match=r"more than this machine has now: 399\.0 MiB") as refused:
        admission.admit(plan)
    assert refused.value.floor_bytes == 400 << 20
    monkeypatch.setenv("REVEDGE_RESERVE", "100MiB")
    admission.admit(plan)
    with pytest.raises(BudgetError, match=r"more than this machine has: 8\.0 GiB"):
        admission.admit(make_plan(budget_bytes=9 << 30))


def test_the_cache_of_a_cgroup_is_free_to_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Idle file pages count as used in a cgroup, and are given up as soon as anyone needs them."""
    folder = tmp_path_factory.mktemp("cgroup")
    (folder / "max").write_text("1000\n")
    (folder / "current").write_text("900\n")
    files = [(str(folder / "max"), str(folder / "current"))]
    monkeypatch.setattr(meter, "_cgroup_files", lambda: files)
    assert meter.available_bytes() == 100
    (folder / "memory.stat").write_text("anon 5\ninactive_file 700\n")
    assert meter.available_bytes() == 800
    (folder / "max").write_text(f"{2**63 - 4096}\n")
    assert meter.available_bytes() > 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        "libgomp: Out of memory allocating 1048576 bytes",
        "ImportError: libcublas.so: failed to map segment from shared object",
        "OSError: [Errno 12] in another language",
        "RuntimeError: could not execute a primitive",
        "RuntimeError: can't start new thread",
        "RuntimeError: cusolver error: CUSOLVER_STATUS_ALLOC_FAILED",
        "RuntimeError: CUDA driver error: out of memory",
        "NvMapReserveOp 0x80000000 failed [22]",
    ],
)
def test_more_texts_of_too_little_memory(text: str) -> None:
    """Those of libraries that are loaded or started late, and of Tegra."""
    assert oom.classify(text)


def test_progress_shows_the_rung_and_memory_against_the_budget() -> None:
    """What memory costs now, its peak, the budget, how memory is saved, and that training is paused."""
    stream = io.StringIO()
    progress = Progress(400 * MIB, stream)
    progress.event({"event": "start", "step": 0, "total_steps": 8, "rung": "store"})
    progress.event({"event": "step", "step": 2, "loss": 0.5})
    began_s = progress._began_s
    line = progress.line(200 * MIB, 300 * MIB, began_s + 1.0)
    assert "2/8  store  2.00 steps/s" in line
    assert "200.0 MiB (peak 300.0 MiB, 75 % of 400.0 MiB)" in line
    progress.event(
        {
            "event": "rung",
            "change": "store -> reverse",
            "why": "no memory",
            "effect": "the same gradients to the last bit",
            "rung": "reverse",
            "predicted_peak_bytes": 300 * MIB,
        }
    )
    said = stream.getvalue()
    assert (
        "out of memory (no memory); store -> reverse, predicted peak 300.0 MiB of 400.0 MiB" in said
    )
    assert "the same gradients to the last bit" in said
    progress.event({"event": "paused", "step": 2})
    assert "2/8  reverse  paused" in progress.line(0, 0, began_s + 2.0)
    progress.event({"event": "resumed", "step": 2})
    assert "paused" not in progress.line(0, 0, began_s + 2.0)
