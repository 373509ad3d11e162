"""After a trainer's death: which rung goes on, while the machine's memory comes back or does not."""

from types import SimpleNamespace

import pytest

from revedge.devices import admission, meter, recovery
from revedge.devices.recovery import Recovery
from revedge.devices.run_folder import RunFolder
from revedge.errors import BudgetError
from revedge.planner.cost import Prediction
from revedge.planner.descent import descend, dump
from revedge.planner.plan import Plan
from revedge.planner.setting import Setting

from .conftest import MakeRun

MIB = 1 << 20
PEAKS = {"store": 400, "keep-conv": 380, "keep-spikes": 360, "reverse": 340}  # MiB
LOOKS_TO_SETTLE = 10  # 2 s, a look every 0.2 s


@pytest.fixture
def run(make_run: MakeRun) -> RunFolder:
    """Return a run whose ladder begins at 400 MiB and falls by 20 a rung, and by 20 for each more piece."""

    def predict(setting: Setting) -> Prediction:
        pieces = setting.batch_size // setting.micro_batch_size
        peak = PEAKS[str(setting.strategy)] - 20 * (pieces - 2)
        return Prediction(parts={"base_bytes": peak * MIB})

    made = make_run("pressed", strategy="store")
    made.ladder.write_text(dump(descend(Plan.load(made.plan), predict)))
    return made


class _Machine:
    """What is left on it at each look, in MiB; the last value stays."""

    def __init__(self, *left: int) -> None:
        self.left, self.looks, self.now_s = left, 0, 0.0

    def available_bytes(self) -> int:
        self.looks += 1
        return self.left[min(self.looks, len(self.left)) - 1] * MIB

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def _rung(run: RunFolder, monkeypatch: pytest.MonkeyPatch, machine: _Machine) -> Plan:
    monkeypatch.setattr(meter, "available_bytes", machine.available_bytes)
    monkeypatch.setattr(admission, "running_reserve_bytes", lambda: 0)
    clock = SimpleNamespace(monotonic=lambda: machine.now_s, sleep=machine.sleep)
    monkeypatch.setattr(recovery, "time", clock)
    plan = Plan.load(run.plan)
    found = Recovery(run, lambda text: None, lambda: False).next(plan, "killed", may_stay=True)
    assert found is not None
    return found.plan


def test_memory_that_comes_back_in_pieces_is_waited_for(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lower rungs fit on the way, but the room still grows: the same plan goes on, so the same numbers."""
    machine = _Machine(50, 200, *range(300, 400, 4), 420)
    assert _rung(run, monkeypatch, machine) == Plan.load(run.plan)
    assert machine.looks == len(machine.left)


def test_memory_that_stays_away_means_a_lower_rung(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best rung that fits is taken two seconds after the room has stopped growing, and its plan is written."""
    machine = _Machine(50, 365)
    found = _rung(run, monkeypatch, machine)
    assert (found.strategy, found.predicted_peak_bytes) == ("keep-spikes", 360 * MIB)
    assert machine.looks in (2 + LOOKS_TO_SETTLE, 3 + LOOKS_TO_SETTLE)
    assert Plan.load(run.plan) == found


def test_a_little_to_and_fro_is_no_growth(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that goes up and down by less than before settles."""
    machine = _Machine(365, *([362, 365] * 20))
    assert _rung(run, monkeypatch, machine).strategy == "keep-spikes"
    assert machine.looks <= 3 + LOOKS_TO_SETTLE


def test_no_rung_fits_until_patience_ends(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the error says what is there and what is needed."""
    with pytest.raises(BudgetError, match=r"room for 50.0 MiB, but the least .* is 220.0 MiB"):
        _rung(run, monkeypatch, _Machine(50))
