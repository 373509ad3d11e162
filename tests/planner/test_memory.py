"""What the planner remembers, shared by several processes and several states of the code."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from revedge.planner.memory import Memory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv("REVEDGE_CACHE", str(tmp_path))
    return tmp_path


def remember(name: str, *keys: str, limit: int = 20_000) -> None:
    """Write entries, as a process of its own would."""
    memory = Memory(name, limit=limit)
    for key in keys:
        memory.set(key, {"of": key})
    memory.save()


def recall(name: str, *keys: str, limit: int = 20_000) -> list[bool]:
    """Tell which entries are known, as a process of its own would."""
    memory = Memory(name, limit=limit)
    found = [memory.get(key) is not None for key in keys]
    memory.save()
    return found


def test_a_damaged_cache_is_no_cache(cache: Path) -> None:
    """A cache file that holds anything else is ignored and written anew; an unwritable one is no error."""
    path = cache / "damaged.json"
    for text in ("", "[1]", "{", "\x00", "[" * 100_000, '{"key": 5}'):
        path.write_text(text)
        memory = Memory("damaged.json")
        assert memory.get("key") is None
        memory.set("key", {"value": 1})
        memory.save()
        assert json.loads(path.read_text()) == {"key": {"value": 1}}
    unwritable = Memory("damaged.json/below.json")
    unwritable.set("key", {"value": 1})
    unwritable.save()


def test_what_is_used_stays_when_others_fill_the_file(cache: Path) -> None:
    """Entries that are only read outlive any number of new ones of other states of the code."""
    remember("base.json", "mine", limit=20)
    for number in range(200):
        remember("base.json", f"other {number}", limit=20)
        if number % 5 == 0:
            assert recall("base.json", "mine", limit=20) == [True]
    kept = list(json.loads((cache / "base.json").read_text()))
    assert len(kept) == 20
    assert set(kept) - {"mine"} <= {f"other {number}" for number in range(180, 200)}


def test_several_environments_do_not_throw_each_other_out(cache: Path) -> None:
    """Three that nearly fill the file find all of theirs again, whatever else is remembered between."""
    environments = [[f"{name} {number}" for number in range(25)] for name in "abc"]
    for keys in environments:
        remember("base.json", *keys, limit=80)
    for again in range(5):
        for keys in environments:
            assert all(recall("base.json", *keys, limit=80))
            remember("base.json", f"{again} of {keys[0]}", limit=80)


def test_two_writers_keep_what_both_have_found(cache: Path) -> None:
    """The second of two that were open at once does not undo the first."""
    first, second = Memory("traces-1.json"), Memory("traces-1.json")
    first.set("a", {"value": 1})
    second.set("b", {"value": 2})
    first.save()
    second.save()
    assert recall("traces-1.json", "a", "b") == [True, True]


def test_reading_writes_nothing(cache: Path) -> None:
    """Where there is room, a plan that finds everything leaves the file as it was."""
    remember("base.json", "a", "b", limit=20)
    before = (cache / "base.json").stat()
    assert recall("base.json", "a", "b", limit=20) == [True, True]
    assert (cache / "base.json").stat() == before


def test_files_of_old_code_are_forgotten(cache: Path) -> None:
    """Of the files of one kind the thirty written last stay; other kinds are left alone."""
    remember("base.json", "a")
    remember("times-0.json", "a")
    for number in range(40):
        remember(f"traces-{number}.json", "a")
        os.utime(cache / f"traces-{number}.json", (number + 1, number + 1))
    left = {path.name for path in cache.glob("*.json")}
    traces = {f"traces-{number}.json" for number in range(10, 40)}
    assert left == {"base.json", "times-0.json", *traces}


def test_a_writer_that_stands_still_holds_nobody_up(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another process keeps the lock, what was found is not remembered, and nothing else happens."""
    monkeypatch.setattr("revedge.planner.memory._LOCK_PATIENCE_S", 0.05)
    remember("base.json", "a")
    with (cache / ".base.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remember("base.json", "b")
    assert recall("base.json", "a", "b") == [True, False]
