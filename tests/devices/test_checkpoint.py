"""Checkpoints: damage is found, the last good one is used, a full disk loses nothing."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch

from revedge.devices import atomic
from revedge.devices.checkpoint import CheckpointStore
from revedge.errors import CheckpointError


def _store(folder: Path, steps: int = 2, identity: str = "me") -> CheckpointStore:
    store = CheckpointStore(folder, identity)
    for step in range(1, steps + 1):
        store.save(step, {"w": torch.full((100,), float(step))}, {"epoch": step})
    return store


def _load(store: CheckpointStore) -> tuple[int | None, float, list[str]]:
    tensor = torch.zeros(100)
    loaded = store.load({"w": tensor})
    step = None if loaded.state is None else loaded.state["step"]
    return step, float(tensor[0]), loaded.problems


def test_the_newest_checkpoint_comes_back(tmp_path: Path) -> None:
    """Values and state are those of the newest one; the newest two are kept."""
    store = _store(tmp_path, steps=4)
    assert _load(store) == (4, 4.0, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000003.json",
        "step-00000003.safetensors",
        "step-00000004.json",
        "step-00000004.safetensors",
    ]


def test_an_empty_folder_is_the_start(tmp_path: Path) -> None:
    """No checkpoint at all is no error: training was cut before the first."""
    assert _load(CheckpointStore(tmp_path / "new", "me")) == (None, 0.0, [])


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _other_version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9}))


DAMAGES = [
    (".safetensors", _truncate, "step-00000002.safetensors is truncated"),
    (".safetensors", _flip, "step-00000002.safetensors is damaged"),
    (".safetensors", os.unlink, "step-00000002.safetensors is missing"),
    (".json", _truncate, "step-00000002.json is truncated or damaged"),
    (".json", _flip, "step-00000002.json"),
    (".json", _other_version, "is of checkpoint version 9, this revedge reads 1"),
]


@pytest.mark.parametrize(("suffix", "damage", "message"), DAMAGES)
def test_damage_falls_back_to_the_last_good_one(tmp_path: Path, suffix, damage, message) -> None:
    """The damaged newest checkpoint is named and the one before it is used."""
    store = _store(tmp_path)
    damage(tmp_path / f"step-00000002{suffix}")
    step, value, problems = _load(store)
    assert (step, value, len(problems)) == (1, 1.0, 1)
    assert message in problems[0]


@pytest.mark.parametrize(("suffix", "damage", "message"), DAMAGES)
def test_no_good_checkpoint_is_an_error_that_says_what_to_do(
    tmp_path: Path, suffix, damage, message
) -> None:
    """With every checkpoint damaged, loading stops and names the folder to remove."""
    store = _store(tmp_path)
    for step in (1, 2):
        damage(tmp_path / f"step-0000000{step}{suffix}")
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        _load(store)
    assert f"no checkpoint in {tmp_path} can be used" in str(caught.value)
    assert "remove that folder" in str(caught.value)


def test_every_flipped_bit_of_the_record_is_found(tmp_path: Path) -> None:
    """Whichever byte of the newest JSON is changed, its state is not believed."""
    store = _store(tmp_path)
    path = tmp_path / "step-00000002.json"
    good = path.read_bytes()
    for place in range(0, len(good) - 1, 3):
        data = bytearray(good)
        data[place] ^= 4
        path.write_bytes(data)
        step, value, problems = _load(store)
        if not problems:  # white space or a number's notation: the same record
            assert json.loads(data) == json.loads(good)
        else:
            assert (step, value) == (1, 1.0)


def test_another_training_is_refused(tmp_path: Path) -> None:
    """A checkpoint of other settings is not continued."""
    _store(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another training"):
        _load(CheckpointStore(tmp_path, "somebody else"))


def test_after_a_fallback_the_damaged_one_goes(tmp_path: Path) -> None:
    """The first checkpoint after a fallback replaces the damaged one of a later step."""
    store = _store(tmp_path, steps=3)
    _flip(tmp_path / "step-00000003.safetensors")
    assert _load(store)[0] == 2
    store.save(3, {"w": torch.full((100,), 3.0)}, {})
    assert _load(store) == (3, 3.0, [])


@pytest.mark.parametrize("fails_at", ["tensors", "record"])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """Whichever file the disk gets full at, what was there can still be loaded and no rest is left."""
    store = _store(tmp_path)
    real = os.write
    left = [100 if fails_at == "tensors" else 100 * 4 + 300]

    def write(handle: int, data: memoryview) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(handle, data[: left[0]])
        left[0] -= done
        return done

    monkeypatch.setattr(atomic.os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        store.save(3, {"w": torch.full((100,), 3.0)}, {})
    monkeypatch.undo()
    assert _load(store) == (2, 2.0, [])
    assert not list(tmp_path.glob(".*"))
    store.save(3, {"w": torch.full((100,), 3.0)}, {})
    assert _load(store) == (3, 3.0, [])
