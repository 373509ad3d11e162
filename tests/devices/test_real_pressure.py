"""Memory that is really short: a cgroup with a limit, other processes in it, and the kernel that kills."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from revedge.devices.meter import PeakMeter
from revedge.devices.metrics_log import read_metrics
from revedge.devices.run_folder import RunFolder
from revedge.planner.cost import Prediction
from revedge.planner.descent import descend, dump
from revedge.planner.plan import Plan
from revedge.planner.setting import Setting

from .cgroups import HOLD, Group, limited
from .conftest import MakeRun
from .processes import Start, anon_bytes, digest, finish, newest, trainer_of, wait

LIMIT_BYTES = 900 << 20
EPOCHS = 25
HELD_BYTES = 200 << 20
PEAK_BYTES = 400 << 20  # that the plan of the tiny training says
_LESS = {"store": 0, "keep-conv": 4, "keep-spikes": 8, "reverse": 12}


@pytest.fixture
def group() -> Iterator[Group]:
    """Return a cgroup of `LIMIT_BYTES`."""
    with limited(LIMIT_BYTES) as made:
        if isinstance(made, str):
            pytest.skip(made)
        yield made


@pytest.fixture
def run(make_run: MakeRun) -> RunFolder:
    """Return a training of some seconds whose ladder falls by 4 MiB a rung."""

    def predict(setting: Setting) -> Prediction:
        pieces = setting.batch_size // setting.micro_batch_size
        less = _LESS[str(setting.strategy)] + 16 * pieces
        return Prediction(parts={"base_bytes": PEAK_BYTES - (less << 20)})

    made = make_run("pressed", checkpoint_every_s=0.1, epochs=EPOCHS, strategy="store")
    made.ladder.write_text(dump(descend(Plan.load(made.plan), predict)))
    return made


@pytest.fixture(scope="module")
def kept_digest() -> list[str]:
    """Return where the first whole training leaves the digest of its weights."""
    return []


@pytest.fixture
def whole(make_run: MakeRun, start: Start, kept_digest: list[str]) -> Callable[[], str]:
    """Return a function that gives the digest of the weights after an undisturbed training."""

    def train() -> str:
        if not kept_digest:
            run = make_run("whole", checkpoint_every_s=0.1, epochs=EPOCHS, strategy="store")
            finish(start("train", "--resume", str(run.path), "--json"))
            kept_digest.append(digest(run))
        return kept_digest[0]

    return train


def test_the_kernel_kills_the_trainer_and_training_goes_on(
    group: Group, run: RunFolder, start: Start, whole: Callable[[], str]
) -> None:
    """Others take all that is left at once: the kernel kills the trainer; it goes on when they are gone, same bits."""
    process = start(
        "train", "--resume", str(run.path), "--json", inside=group.inside, REVEDGE_RESERVE="32MiB"
    )
    wait(lambda: newest(run) >= 3, process)
    trainer = trainer_of(process)
    assert trainer is not None
    left_bytes = anon_bytes(process.pid) + anon_bytes(trainer) // 2
    with group.held(LIMIT_BYTES - left_bytes, processes=3):
        wait(lambda: group.kills() > 0, process)
        wait(lambda: trainer_of(process) != trainer, process)
    result = finish(process)
    assert group.kills() >= 1
    assert result["restarts"] >= 1
    lines = read_metrics(run.metrics)
    assert any(line["event"] in ("rung", "warning") and "signal 9" in str(line) for line in lines)
    assert digest(run) == whole()


def test_others_take_memory_and_give_it_back(
    group: Group, run: RunFolder, start: Start, whole: Callable[[], str]
) -> None:
    """Others leave less than the reserve: training pauses, goes on in the same process when they end; same bits."""
    process = start(
        "train", "--resume", str(run.path), "--json", inside=group.inside, REVEDGE_RESERVE="400MiB"
    )
    wait(lambda: newest(run) >= 3, process)
    trainer = trainer_of(process)

    def events() -> list[str]:
        return [line["event"] for line in read_metrics(run.metrics)]

    assert trainer is not None
    left_bytes = anon_bytes(process.pid) + anon_bytes(trainer) + (100 << 20)
    with group.held(LIMIT_BYTES - left_bytes):
        wait(lambda: "paused" in events(), process)
        assert trainer_of(process) == trainer
    result = finish(process)
    assert group.kills() == result["restarts"] == 0
    assert events().count("paused") == events().count("resumed") >= 1
    assert digest(run) == whole()


def test_what_a_cgroup_has_no_room_for_is_refused(
    group: Group, run: RunFolder, start: Start
) -> None:
    """Admission counts what the cgroup of the process has left, not what the machine has."""
    with group.held(LIMIT_BYTES - (300 << 20)):
        words = ("train", "--resume", str(run.path))
        process = start(*words, inside=group.inside, REVEDGE_RESERVE="32MiB")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "more than this machine has now" in err
    assert newest(run) == 0


def test_the_group_is_real(group: Group) -> None:
    """What these tests stand on: in the group a process that takes more than the limit is killed by the kernel."""
    more = f"held = b'x' * {2 * LIMIT_BYTES}"
    done = subprocess.run(group.inside(sys.executable, "-c", more), check=False)
    assert done.returncode == -9
    assert group.kills() == 1


def test_what_the_kernel_swapped_out_counts() -> None:
    """A process of twice the memory of its group stands in swap by half, and the meter counts both halves."""
    if "\n" not in Path("/proc/swaps").read_text().strip():
        pytest.skip("this machine has no swap")
    with limited(100 << 20, swap=True) as made:
        if isinstance(made, str):
            pytest.skip(made)
        holder = subprocess.Popen(
            made.inside(sys.executable, "-c", HOLD, str(HELD_BYTES)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            meter = PeakMeter()
            own_bytes = meter.now_bytes
            meter.follow(holder.pid)
            meter.sample()
            assert meter.swap_bytes >= HELD_BYTES - (100 << 20)
            assert meter.now_bytes - own_bytes >= HELD_BYTES
            assert meter.peak_bytes == meter.now_bytes
            assert made.kills() == 0
        finally:
            holder.communicate()
