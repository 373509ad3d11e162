"""The report is one page with everything in it: parts, front, timeline, alternatives, and what really happened."""

import re
import xml.dom.minidom
from html.parser import HTMLParser
from typing import Any

import pytest

from revedge.planner import explain, report
from revedge.planner.report_entries import kind_of
from revedge.planner.search import search
from revedge.planner.timeline import MOST_POINTS, timeline
from revedge.planner.tracer import Storage

from .test_search import FAMILIES, predictor, request

pytest.importorskip("matplotlib")

BUDGET = 3000
TIMELINE = {"operations": [0, 4, 9], "bytes": {"weights": [5, 5, 5], "activations": [0, 900, 20]}}
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Elements of a page: ids, titles, tables as rows of cells; raises where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[dict[str, str | None]]] = []
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Note ids, sources, rows and cells."""
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.sources += [values[name] for name in ("src", "href") if values.get(name)]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """Open and close."""
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close what is open."""
        assert self.open.pop() == tag


def found(budget: int = BUDGET) -> dict[str, Any]:
    result = search(request(budget, prefer="depth"), FAMILIES, predictor((5, 1, 100)))
    return {**explain.payload(result, budget), "timeline": TIMELINE}


def pictures(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)


def test_the_page_is_whole_and_alone() -> None:
    """Well-formed, small, every id once, and nothing is loaded from anywhere."""
    text = report.page(found())
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(source.startswith("#") for source in page.sources)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert 'name="viewport"' in text
    assert len(text) < 400_000
    assert len(pictures(text)) == 3
    for picture in pictures(text):
        root = xml.dom.minidom.parseString(picture).documentElement
        assert root is not None
        assert not root.hasAttribute("width")
        assert root.hasAttribute("viewBox")


def test_the_same_plan_gives_the_same_page() -> None:
    """No clock and no chance: a page can be compared with another."""
    assert report.page(found()) == report.page(found())


def test_every_part_alternative_and_neighbor_is_told() -> None:
    """Each part is in the bar with its size; each alternative is a point and a row; each neighbor has its reason."""
    given = found()
    text = report.page(given)
    bar, _, front = pictures(text)
    for name, size in given["config"]["parts"].items():
        assert f"<title>{kind_of(name)} {report.format_bytes(size)}</title>" in bar
    assert front.count("-tip-") == front.count("<title>") == len(given["alternatives"])
    rows = [row for row in Page(text).rows if len(row) == 8 and "data-value" in row[6]]
    peaks = [float(row[6]["data-value"] or "nan") for row in rows]
    assert peaks == [each["predicted_peak_bytes"] for each in given["alternatives"]]
    assert text.count('class="chosen"') == 1
    for each in given["rejected"]:
        assert report.esc(each["reason"]) in text


def test_activations_are_told_by_run() -> None:
    """What each run keeps is a piece of the bar, and the rest of the activations another; together they are all."""
    given = found()
    whole = given["config"]["parts"]["activations_bytes"]
    given["timeline"] = {**TIMELINE, "kept_bytes": [100, 0, 50]}
    bar = pictures(report.page(given))[0]
    for name, size in (("of run 1", 100), ("of run 3", 50), ("at work", whole - 150)):
        assert f"<title>activations {name} {report.format_bytes(size)}</title>" in bar
    assert "of run 2" not in bar


def test_an_infeasible_search_says_what_to_do() -> None:
    """Nothing fits: the reason and the ways out stand on top."""
    given = found(101)
    assert given["config"] is None
    text = report.page(given)
    assert report.esc(given["way_out"]) in text
    assert text.index("give --budget") < text.index("<figure>")


def test_a_training_stands_beside_its_prediction() -> None:
    """What happened: the measured peak as a line in the bar and in words, memory over time, accuracy."""
    lines = [{"time_s": float(t), "now_bytes": 900 + t, "peak_bytes": 900 + t} for t in range(5)]
    epochs = [{"epoch": n, "train_accuracy": 0.5, "test_accuracy": 0.25 * n} for n in (1, 2)]
    given = found()
    result = {
        "test_accuracy": 0.5,
        "predicted_peak_bytes": given["predicted_peak_bytes"],
        "measured_peak_bytes": given["predicted_peak_bytes"] - 200,
        "wall_s": 9.0,
        "restarts": 0,
    }
    text = report.page(given, {"result": result, "memory": lines, "epochs": epochs})
    Page(text)
    assert len(pictures(text)) == 5
    assert "below the prediction" in text
    worse = {**result, "measured_peak_bytes": given["predicted_peak_bytes"] + 200}
    text = report.page(given, {"result": worse, "memory": [], "epochs": []})
    assert "above the prediction" in text
    assert len(pictures(text)) == 3


def test_texts_are_escaped() -> None:
    """A model option cannot put markup on the page."""
    given = found()
    given["config"]["model_options"] = {"neuron": "<script>alert(1)</script>"}
    assert "<script>alert" not in report.page(given)


def test_the_timeline_loses_no_peak() -> None:
    """However long, it has few points, and the largest moment of each stretch."""
    storages = [Storage(100, "weights", 0)]
    storages += [Storage(n, "activations", 2 * n, 2 * n + 1) for n in range(1, 5000)]
    line = timeline(storages, 10_000)
    assert len(line["operations"]) <= MOST_POINTS
    assert line["bytes"]["weights"] == [100] * len(line["operations"])
    assert max(line["bytes"]["activations"]) == 4999
    chain = timeline([Storage(7, "a", 0, 4), Storage(5, "a", 3, 9)], 10)
    assert max(chain["bytes"]["a"]) == 12


def test_sites_are_rows_and_the_peaks_is_marked() -> None:
    """Each part of a step is a row in order, with its live bytes as a number; the largest is marked."""
    sites = [("forward run 1", 700), ("backward run 1", 2000), ("evaluation <1>", 900)]
    told = [{"site": name, "live_bytes": size} for name, size in sites]
    text = report.page({**found(), "sites": told})
    rows = [row for row in Page(text).rows if len(row) == 4 and "data-value" in row[0]]
    assert [float(row[2]["data-value"] or "nan") for row in rows] == [size for _, size in sites]
    assert text.count('class="chosen"') == 2
    assert '<tr class="chosen"><td class=n data-value="2">2</td><td>backward run 1</td>' in text
    assert "evaluation &lt;1&gt;" in text
    # A hundred rows of a deep network stand behind everything else, and folded up.
    front, folded = text.split("<details>")
    assert "Memory against time" in front
    assert "Why not" in front
    assert "Live bytes, site by site" in folded
    assert "<h2>" not in folded
