"""The plan is a checked value; its file gives back the same value or says what is wrong."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revedge.errors import PlanFormatError, UsageError
from revedge.planner.plan import Plan

PLAN = Plan(
    model="net.py:build",
    model_options={"width": 16, "neuron": "lif", "tau": 2.5, "flag": True, "sizes": [1, 2]},
    data="digits",
    in_shape=(2, 8, 8),
    num_classes=10,
    timesteps=8,
    batch_size=32,
    micro_batch_size=16,
    learning_rate=1e-5,
    budget_bytes=400 * 2**20,
    predicted_peak_bytes=300,
    parts={"base_bytes": 200, "slack_bytes": 100},
)


def test_round_trip() -> None:
    """A plan written and read is the same plan, optional fields included."""
    assert Plan.from_toml(PLAN.to_toml()) == PLAN
    for name in (
        "data_dir",
        "epochs",
        "slab_bytes",
        "membrane_count",
        "chunk_bytes",
        "update_in_backward",
    ):
        assert name not in PLAN.to_toml()  # an older revedge reads a plan that needs none of them
    sliced = dataclasses.replace(
        PLAN,
        strategy=("store", "reverse"),
        slab_bytes=8 << 20,
        span_count=16,
        membrane_count=2,
        chunk_bytes=1 << 20,
        micro_batch_size=32,
        update_in_backward=True,
    )
    assert Plan.from_toml(sliced.to_toml()) == sliced
    full = dataclasses.replace(PLAN, data_dir='C:\\a "b"\n\x7f\u00e9', epochs=3, static=True)
    assert Plan.from_toml(full.to_toml()) == full


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    rate=st.floats(0, allow_infinity=False, allow_nan=False),
)
def test_round_trip_of_any_text_and_rate(text: str, rate: float) -> None:
    """Every text and every finite number survives the file bit for bit."""
    plan = dataclasses.replace(PLAN, data_dir=text, learning_rate=rate)
    assert Plan.from_toml(plan.to_toml()) == plan


def test_save_and_load(tmp_path: Path) -> None:
    """A saved plan loads; nothing but the file stays behind."""
    PLAN.save(tmp_path / "plan.toml")
    PLAN.save(tmp_path / "plan.toml")
    assert Plan.load(tmp_path / "plan.toml") == PLAN
    assert [each.name for each in tmp_path.iterdir()] == ["plan.toml"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version = 1", "version = 2", "version = 2"),
        ("version = 1", "version = true", "version = True"),
        ("version = 1\n", "", "version = None"),
        ("timesteps = 8\n", "", "no 'timesteps'"),
        ("timesteps = 8", "timesteps = 8\nsteps = 3", "unknown key 'steps'"),
        ("timesteps = 8", "timesteps = 0", "out of range"),
        ("timesteps = 8", "timesteps = true", "is bool"),
        ("timesteps = 8", "timesteps = 8.0", "is float"),
        ("timesteps = 8", "timesteps = ", "damaged"),
        ("timesteps = 8", "timesteps = 99999999999999999999", "out of range"),
        ("timesteps = 8", "timesteps = 100001", "at most 100000"),
        ("batch_size = 32", "batch_size = 1000000000", "at most 1000000"),
        ("threads = 1", "threads = 1025", "at most 1024"),
        ("width = 16", "depth = 10001", "at most 10000"),
        ("learning_rate = 1e-05", "learning_rate = nan", "finite"),
        ("learning_rate = 1e-05", "learning_rate = -1.0", "out of range"),
        ("label_smoothing = 0.0", "label_smoothing = 1", r"\[0, 1\)"),
        ('strategy = "reverse"', 'strategy = "magic"', "not known"),
        ('strategy = "reverse"', 'strategy = ["store", "magic"]', "not known"),
        ('strategy = "reverse"', "strategy = []", "not known"),
        ("timesteps = 8", "timesteps = 8\nslab_bytes = 0", "out of range"),
        ("timesteps = 8", "timesteps = 8\nslab_bytes = 8.5", "is float"),
        ("timesteps = 8", "timesteps = 8\nmembrane_count = 2", "give span_count, too"),
        ("timesteps = 8", "timesteps = 8\nchunk_bytes = 0", "out of range"),
        ("timesteps = 8", "timesteps = 8\nupdate_in_backward = true", "micro-batches"),
        ('model = "net.py:build"', 'model = ""', "empty"),
        ('model = "net.py:build"', 'model = "a\\u001b[2J:b"', "control characters"),
        ('model = "net.py:build"', 'model = "vgg5"', "'flag' is not known; vgg5 has depth, "),
        ("width = 16", 'strategy = "store"', "take it out of"),
        ("width = 16", "in_shape = [2, 8, 8]", "'in_shape' is no model option"),
        ("in_shape = [2, 8, 8]", "in_shape = [2, 8]", "in_shape"),
        ("in_shape = [2, 8, 8]", "in_shape = [2, 8, true]", "in_shape"),
        ("in_shape = [2, 8, 8]", "in_shape = 3", "in_shape"),
        ("micro_batch_size = 16", "micro_batch_size = 15", "divisor"),
        ("base_bytes = 200", "base_bytes = 201", "sum to 301"),
        ("base_bytes = 200", "base = 200", "part 'base'"),
        ("width = 16", "width = {a = 1}", "model option 'width'"),
    ],
)
def test_damaged_file(old: str, new: str, says: str) -> None:
    """Another version, a key too few or too many, a wrong value: refused with a reason."""
    assert old in PLAN.to_toml()
    with pytest.raises(PlanFormatError, match=says):
        Plan.from_toml(PLAN.to_toml().replace(old, new, 1))


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe\x00", b"x" * (2**20 + 1), b"", b"[" * 100_000], ids=range(4)
)
def test_hostile_file(tmp_path: Path, raw: bytes) -> None:
    """Bytes that are no plan at all are refused, and the message names the file."""
    (tmp_path / "plan.toml").write_bytes(raw)
    with pytest.raises(PlanFormatError, match=r"plan\.toml"):
        Plan.load(tmp_path / "plan.toml")


def test_every_truncation_is_refused() -> None:
    """A file cut after any line but its last is never read as a plan."""
    lines = PLAN.to_toml().splitlines(keepends=True)
    for count in range(len(lines)):
        with pytest.raises(PlanFormatError):
            Plan.from_toml("".join(lines[:count]))


def test_missing_file(tmp_path: Path) -> None:
    """A path that is not there is a usage error; a folder is no plan file."""
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match="no such plan file"):
            Plan.load(path)
