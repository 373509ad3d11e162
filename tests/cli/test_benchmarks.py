"""The scripts in benchmarks/: all of them run under `make bench`, and a report keeps what a person wrote."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def script(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Yield a function that imports one of the scripts by its name; the test over, they are forgotten."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))

    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(
            str(root / "benchmarks")
        ):
            del sys.modules[name]


def test_every_script_is_run(root: Path, script) -> None:
    """A new bench_*.py stands in run_all.py, or it is one that has a target of its own."""
    run_all = script("run_all")
    there = {path.stem for path in (root / "benchmarks").glob("bench_*.py")}
    assert there - set(run_all.SCRIPTS) == run_all.OF_THEIR_OWN
    for name in run_all.SCRIPTS:
        assert (root / "benchmarks" / f"{name}.py").exists()


def test_the_index_names_every_script_and_report(root: Path) -> None:
    """A new one has its line in benchmarks/README.md."""
    folder = root / "benchmarks"
    index = (folder / "README.md").read_text("utf-8")
    there = {path.name for path in folder.iterdir() if path.suffix in (".py", ".md")}
    assert {name for name in there - {"README.md"} if name not in index} == set()


def test_run_all_goes_on_and_stops_what_takes_too_long(tmp_path, capsys, monkeypatch, script):
    """One that misses a bar does not keep the next from running; one over the limit is stopped with its children."""
    run_all = script("run_all")
    (tmp_path / "misses.py").write_text("raise SystemExit(1)")
    (tmp_path / "good.py").write_text("open(__import__('sys').argv[1] + '/done', 'w')")
    child = [sys.executable, "-c", f"import time; time.sleep(60)  # {tmp_path}"]
    (tmp_path / "slow.py").write_text(f"import subprocess; subprocess.run({child!r})")
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "SCRIPTS", {"misses": [], "good": ["{folder}"], "slow": []})
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--only", "misses,good,slow", "--limit-s", "3"])
    assert run_all.main() == 1
    last = capsys.readouterr().out.strip().splitlines()[-3:]
    assert last[0].startswith("misses")
    assert "missed a bar" in last[0]
    assert "done" in last[1]
    assert "over the limit" in last[2]
    left = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=False)
    assert str(tmp_path) not in left.stdout


def test_a_report_keeps_its_notes(tmp_path, script) -> None:
    """Writing a report again replaces the tables and leaves the notes."""
    report = script("report")
    path = tmp_path / "a.md"
    report.write(path, "Title", "python a.py", ["Hardware: x."], ["old table"])
    assert "## Notes" not in path.read_text()
    path.write_text(path.read_text() + "\n## Notes\n\nthe floor is 12 MiB\n")
    report.write(path, "Title", "python a.py", ["Hardware: x."], ["new table"])
    text = path.read_text()
    assert "old table" not in text
    assert "new table" in text
    assert text.endswith("## Notes\n\nthe floor is 12 MiB\n")


def test_a_report_names_no_folder(script, monkeypatch) -> None:
    """Hardware, versions and the command, without a path of the machine."""
    report = script("report")
    monkeypatch.setattr(sys, "argv", ["/a/b/bench_x.py", "--report", "/a/b/c.md", "--rounds", "3"])
    assert report.command_line() == "python benchmarks/bench_x.py --report c.md --rounds 3"
    assert "/" not in "".join(report.machine(("torch", "nothing-of-this-name"))).replace("/s", "")
    assert "nothing-of-this-name not installed" in report.machine(("nothing-of-this-name",))[1]


def test_bars_are_held_against_what_was_measured(script) -> None:
    """A bar is met by the chosen row only; others that would meet it are named; a missing peer is unknown."""
    bench_peers = script("bench_peers")
    mib = 2**20

    def row(library: str, strategy: str, anon_mib: float, cpu_s: float) -> dict:
        return {
            "net": "iso", "library": library, "strategy": strategy, "timesteps": 8, "batch": 4,
            "anon_peak_bytes": int(anon_mib * mib), "cpu_s": cpu_s,
        }  # fmt: skip

    bar = bench_peers.Bar("iso", "fastest", 70, 0.75)
    own = [row("revedge", "store", 80, 0.5), row("revedge", "keep-conv", 60, 0.7)]
    own.append(row("revedge", "store+update", 1, 0.1))
    found = bench_peers._bar_row(bar, [row("spikingjelly", "stored", 500, 1.0), *own])
    assert (found["strategy"], found["met"], found["met by"]) == ("store", "NO", "keep-conv")
    found = bench_peers._bar_row(
        bench_peers.Bar("iso", "smallest", 60, 0.7), [row("spikingjelly", "stored", 5, 1.0), *own]
    )
    assert (found["strategy"], found["met"]) == ("keep-conv", "yes")
    late = [row("spikingjelly", "stored", 500, 0.6), *own[1:]]
    assert bench_peers._bar_row(bar, late)["met"] == "NO"
    assert bench_peers._bar_row(bar, own)["met"] == "unknown"
