"""Board files: every number has a source; damaged files and unknown names are said plainly."""

from pathlib import Path

import pytest

from revedge.devices import boards
from revedge.errors import DeviceError, UsageError
from revedge.planner.precision import LEAST_CAPABILITY

GOOD = Path(boards.__file__).parent / "boards" / "jetson-orin-nano-8gb.toml"


@pytest.mark.parametrize("name", boards.names())
def test_every_number_has_a_source(name: str) -> None:
    """Each fact of each board stands with words that say where it is from."""
    board = boards.load(name)

    assert board.name == name
    assert all(len(fact.source.split()) >= 2 for fact in board.facts.values())
    assert all(fact.value is not None for fact in board.facts.values() if fact.verified)
    # An owner is no source: who says so, and where?
    assert not any("owner" in fact.source for fact in board.facts.values())


@pytest.mark.parametrize("name", boards.names())
def test_numbers_fit_together(name: str) -> None:
    """MemTotal is less than the chips, CUDA cores are a multiple of the SMs, 64 or 128 each."""
    board = boards.load(name)

    if board.mem_total_bytes is not None:
        assert board.ram_bytes is not None
        assert 0.8 * board.ram_bytes < board.mem_total_bytes < board.ram_bytes
        assert board.largest_budget_bytes == board.mem_total_bytes
    gpu = board.compute_capability not in (None, "none")
    assert (board.cuda_context_bytes is not None) is gpu
    if board.sm_count:
        assert board.cuda_cores in (64 * board.sm_count, 128 * board.sm_count)
    if board.power_modes_w:
        assert list(board.power_modes_w) == sorted(set(board.power_modes_w))


@pytest.mark.parametrize("name", boards.names())
def test_precisions_fit_the_compute_capability(name: str) -> None:
    """A GPU has bfloat16 from capability 8.0 on and float16 from 5.3; without a GPU there is no precision of it."""
    board = boards.load(name)

    assert board.gpu_precisions is not None
    assert board.compute_capability is not None
    if board.compute_capability == "none":
        assert board.gpu_precisions == ()
        return
    capability = tuple(map(int, board.compute_capability.split(".")))
    assert ("bfloat16" in board.gpu_precisions) == (capability >= LEAST_CAPABILITY)
    assert ("float16" in board.gpu_precisions) == (capability >= (5, 3))


def test_variants_differ_in_ram_only() -> None:
    """Boards that share a file have its facts and their own RAM."""
    small, large = boards.load("raspberry-pi-5-2gb"), boards.load("raspberry-pi-5-16gb")

    assert (small.ram_bytes, large.ram_bytes) == (2 * 2**30, 16 * 2**30)
    assert {key for key in small.facts if small.facts[key] != large.facts[key]} == {"ram_bytes"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("jetson-orin-nano", "jetson-orin-nano-4gb or jetson-orin-nano-8gb"),
        ("Raspberry Pi 5", "raspberry-pi-5-16gb or raspberry-pi-5-2gb"),
        ("orin-nx", "jetson-orin-nx-16gb or jetson-orin-nx-8gb"),
        ("jetson-tx3", "jetson-tx2"),
        ("toaster", "revedge devices list"),
        ("", "revedge devices list"),
    ],
)
def test_unknown_names_are_usage_errors(typed: str, meant: str) -> None:
    """The error names what was probably meant, or the list."""
    with pytest.raises(UsageError, match=meant) as caught:
        boards.load(typed)
    assert caught.value.exit_code == 2


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """A path ending in .toml is read as a board; one that is not there is a usage error."""
    path = tmp_path / "my-board.toml"
    path.write_text(GOOD.read_text())

    assert boards.load(str(path)).ram_bytes == 8 * 2**30
    assert boards.load(str(path)).name == "my-board"
    with pytest.raises(UsageError, match="does not exist"):
        boards.load(str(tmp_path / "other.toml"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version = 1", "version = 2", "version 2, but this revedge reads version 1"),
        ("version = 1", "version = ", "is not TOML"),
        ('kind = "jetson"', 'kind = "toaster"', "kind 'toaster', which is none of"),
        ("unified_memory = true", 'unified_memory = "yes"', "unified_memory as bool"),
        ("value = 8_589_934_592", 'value = "8 GB"', r"'8 GB' as value of \[ram_bytes\]"),
        ("value = 8_589_934_592", "value = -1", r"negative number -1 in \[ram_bytes\]"),
        ("value = 8_589_934_592", "value = true", r"True as value of \[ram_bytes\]"),
        ("value = [7, 15, 25]", "value = [7, 0]", "where positive numbers belong"),
        ('value = ["float32", "float16"]', "value = [16]", "where names belong"),
        ("verified = false", "", r"needs \[ram_bytes\] with value, source and verified"),
        ("[sm_count]", "[sm_counts]", "unknown key 'sm_counts'"),
        ('source = "NVIDIA Jetson Orin Nano data sheet"', 'source = " "', "needs a source"),
    ],
)
def test_damaged_files_are_said_plainly(tmp_path: Path, old: str, new: str, says: str) -> None:
    """Each kind of damage is one DeviceError that names the file and what is wrong."""
    path = tmp_path / "board.toml"
    text = GOOD.read_text().replace("verified = true", "verified = false", 1)
    assert old in text
    path.write_text(text.replace(old, new, 1))

    with pytest.raises(DeviceError, match=says) as caught:
        boards.load(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
