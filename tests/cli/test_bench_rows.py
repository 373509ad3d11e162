"""Which rows of a benchmark are smallest, fastest and on the front; how rows of several processes become one."""

import io
import re

import pytest

from revedge.cli import bench_rows, main
from revedge.cli.bench_rows import (
    Case,
    Progress,
    best,
    groups,
    mark_front,
    measure,
    merge,
    strategies_of,
)
from revedge.errors import RevedgeError, UsageError


def row(strategy: str, anon: int, cpu_s: float, **more) -> dict:
    return {
        "net": "a", "timesteps": 1, "batch": 1, "strategy": strategy, "anon_peak_bytes": anon,
        "cpu_s": cpu_s, "loss": 1.0, "gradient_sha1": "x", **more,
    }  # fmt: skip


def test_smallest_and_fastest_are_measured():
    """The least bytes, the least time; within what the meter cannot tell apart, the other figure decides."""
    rows = [row("a", 1000, 3.0), row("b", 1009, 2.0), row("c", 5000, 1.0), row("d", 4000, 1.02)]
    rows += [row("g", 1011, 1.5), row("h", 3000, 1.04)]  # just too far
    assert best(rows, "smallest")["strategy"] == "b"
    assert best(rows, "fastest")["strategy"] == "d"
    rows += [row("e", 900, 9.0), row("f", 9000, 0.5)]
    assert best(rows, "smallest")["strategy"] == "e"
    assert best(rows, "fastest")["strategy"] == "f"


def test_front_is_per_net_and_size():
    """A row is on the front unless another of its group is as good in both and better in one."""
    rows = [row("a", 10, 3.0), row("b", 10, 3.0), row("c", 10, 4.0), row("d", 20, 1.0)]
    rows.append(row("e", 99, 99.0, batch=2))
    mark_front(rows)
    assert [one["pareto"] for one in rows] == [True, True, False, True, True]
    assert [len(group) for group in groups(rows)] == [4, 1]


def test_merge_takes_least_time_and_median_bytes():
    """Other processes of the same row lower the time, never a byte by chance; another gradient is an error."""
    rows = [row("a", 10, 3.0), row("a", 30, 1.0), row("a", 11, 2.0)]
    merged = merge(rows)
    assert (merged["anon_peak_bytes"], merged["cpu_s"]) == (11, 1.0)
    with pytest.raises(RevedgeError, match="gradient_sha1"):
        merge([*rows, row("a", 1, 1.0, gradient_sha1="y")])


def test_all_strategies_and_slabs():
    """`all` is every strategy whole; the best ones are chosen among slabs, too; sizes are parsed."""
    assert strategies_of("all", reversible=False) == [
        "store",
        "keep-conv",
        "keep-spikes",
        "reverse",
    ]
    assert "invert" in strategies_of("all", reversible=True)
    every = strategies_of("smallest", reversible=False)
    assert every == strategies_of("fastest", reversible=False)
    assert {"store", "reverse", "reverse+slabs=2MiB", "keep-spikes+slabs=8MiB"} <= set(every)
    assert not any(each.startswith("keep-conv+") for each in every)  # it keeps what slabs avoid
    assert strategies_of("reverse+slabs=1KiB,store,store", reversible=False) == [
        "reverse+slabs=1KiB", "store",
    ]  # fmt: skip
    nothing = dict.fromkeys(("slab_bytes", "span_count", "membrane_count", "chunk_bytes"))
    for word, options in {
        "reverse": {},
        "reverse+slabs=1KiB": {"slab_bytes": 1024},
        "reverse+slabs=1KiB+spans=8": {"slab_bytes": 1024, "span_count": 8},
        "reverse+spans=8+membranes=2": {"span_count": 8, "membrane_count": 2},
        "reverse+chunks=1KiB": {"chunk_bytes": 1024},
    }.items():
        assert bench_rows.strategy_options(word) == {"strategy": "reverse", **nothing, **options}
    for wrong in (
        "magic",
        "reverse+slabs",
        "reverse+slabs=much",
        "reverse+spans",
        "reverse+spans=0",
        "reverse+membranes=2",
        "reverse+spans=8+membranes=none",
        "reverse+chunks",
        "reverse+magic=2",
        "smallest,store",
    ):
        with pytest.raises(UsageError):
            strategies_of(wrong, reversible=False)


def test_help_says_what_the_best_are_chosen_among(capsys):
    """Every option of a strategy is either tried by `smallest` and `fastest` or said to need its name."""
    with pytest.raises(SystemExit):
        main.main(["bench", "--help"])
    end = capsys.readouterr().out.partition("smallest and fastest choose")[2]
    tried, _, untried = end.partition(";")
    words = " ".join(strategies_of("smallest", reversible=False))
    for key in bench_rows._OPTIONS:
        assert (f"+{key}=" in words) == (key in tried) == (key not in untried), key
    for size in re.findall(r"\+slabs=(\w+)", words):
        assert size in tried
    assert "measured when named" in untried


def test_a_failure_stops_neither_the_others_nor_is_it_lost(monkeypatch):
    """Rows go round after round through fresh processes; what cannot run is told, once, with its error."""
    jobs = []

    def spawn(job):
        jobs.append((job["batch"], job["strategy"], job["slab_bytes"]))
        if job["strategy"] == "reverse":
            return {"strategy": "reverse", "error": "killed"}
        return {**row(job["strategy"], 5, 1.0), "batch": job["batch"]}

    monkeypatch.setattr(bench_rows, "spawn", spawn)
    cases = [Case(net="a", timesteps=1, batch=size, job={"batch": size}) for size in (1, 2)]
    seen: list[tuple[int, int]] = []
    rows, failed = measure(
        cases,
        ["store+slabs=1MiB", "reverse"],
        rounds=2,
        started=lambda done, total, what: seen.append((done, total)),
    )
    once = [(1, "store", 2**20), (1, "reverse", None), (2, "store", 2**20), (2, "reverse", None)]
    assert jobs == [*once, once[0], once[2]]
    assert seen == [(0, 8), (1, 8), (2, 8), (3, 8), (4, 8), (6, 8)]
    assert [(one["batch"], one["strategy"]) for one in rows] == [
        (1, "store+slabs=1MiB"), (2, "store+slabs=1MiB"),
    ]  # fmt: skip
    assert [(one["batch"], one["error"]) for one in failed] == [(1, "killed"), (2, "killed")]


def test_progress_is_a_line_on_a_terminal_only():
    """A terminal sees how far it is and for how long; a file sees nothing."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress(stream)
        progress(0, 4, "iso store")
        progress(3, 4, "iso reverse")
        progress.close()
    assert file.getvalue() == ""
    assert "[4/4] iso reverse" in terminal.getvalue()
    assert "left" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\033[K")
