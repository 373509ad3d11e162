"""The report: one HTML page of a plan, or of a training beside its plan. No network, no other file; some 100 KB.

Pictures are SVG by matplotlib (revedge[report]), with their texts as text, so that they scale to a phone and are found
by a search. What a mark means is its SVG title: shown below the picture when the mouse is on it, or when it is tapped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from revedge.planner.explain import describe, like_with_like, time_text
from revedge.planner.report_entries import identity_of, kind_of, setting_of, time_of, time_words
from revedge.planner.report_parts import Cell, document, esc, table
from revedge.planner.report_pictures import (
    COLOURS,
    accuracy,
    budget_bar,
    live_bytes,
    memory_against_time,
    resident_memory,
)
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime
from revedge.units import format_bytes


def page(found: Mapping[str, Any], run: Mapping[str, Any] | None = None) -> str:
    """Return the HTML text.

    Args:
        found: `revedge.planner.explain.payload` of a search, and ``timeline`` where it could be traced.
        run: of a training: ``result`` (its result.json), ``epochs`` and ``memory`` (lines of its metrics.jsonl), where
            there are any ``rungs`` (such lines too) and ``step_time`` (`StepTime.to_json`).

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    config = found["config"]
    title = "revedge: " + ("training" if run else "plan")
    parts: list[str] = [f"<h1>{esc(title)}</h1>"]
    if config is None:
        parts.append(f"<p class=over>{esc(found['reason'])}</p><p>{esc(found['way_out'])}</p>")
    else:
        parts += _chosen(found, config, run)
    if run:
        parts += _what_happened(found, run)
    if found.get("timeline"):
        parts += [
            "<h2>Live bytes over one step and an evaluation</h2>",
            live_bytes(found["timeline"]),
        ]
    if found["alternatives"]:
        like = like_with_like(found.get("computed_peak_bytes"))
        parts += [
            f"<h2>Memory against time{esc(like)}</h2>",
            memory_against_time(found),
            _alternatives(found),
        ]
    if found["rejected"]:
        like = like_with_like(found.get("computed_peak_bytes"))
        parts += [f"<h2>Why not{esc(like)}</h2>", _rejected(found["rejected"])]
    if found.get("sites"):  # some hundred rows
        parts.append(
            "<details><summary>Live bytes, site by site</summary>"
            f"{_sites(found['sites'])}</details>"
        )
    return document(title, parts)


def _chosen(
    found: Mapping[str, Any], config: Mapping[str, Any], run: Mapping[str, Any] | None
) -> list[str]:
    peak, budget = found["predicted_peak_bytes"], found["budget_bytes"]
    setting = setting_of(config)
    said = f"Predicted peak {format_bytes(peak)} of {format_bytes(budget)}"
    if found.get("floor_bytes"):
        said += f"; the least budget that would do is {format_bytes(found['floor_bytes'])}"
    measured = run["result"]["measured_peak_bytes"] if run else None
    if measured:
        said += (
            f". Measured peak {format_bytes(measured)}, {100 * (peak - measured) / measured:.1f} % "
            "below the prediction"
            if measured <= peak
            else f". Measured peak {format_bytes(measured)}, above the prediction"
        )
    rows: list[list[Cell]] = [
        [f"{_key(kind_of(name))}{esc(kind_of(name))}", (format_bytes(size), size)]
        for name, size in config["parts"].items()
    ]
    return [
        f"<p>{esc(describe(setting))}</p><p>{esc(said)}.</p>",
        budget_bar(
            config["parts"], found.get("timeline", {}).get("kept_bytes", ()), budget, measured
        ),
        table(["part", "bytes"], rows),
    ]


def _what_happened(found: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    result, epochs = run["result"], run["epochs"]
    facts: list[list[Cell]] = [
        ["test accuracy", f"{100 * result['test_accuracy']:.2f} %"],
        ["predicted peak", format_bytes(result["predicted_peak_bytes"])],
        ["measured peak", format_bytes(result["measured_peak_bytes"])],
        ["time", f"{result['wall_s']:.0f} s"],
        ["restarts", str(result["restarts"])],
    ]
    for name, whose in (("predicted", found), ("measured", run)):
        if whose.get("step_time"):
            text = time_text(StepTime(**whose["step_time"]))
            facts.append([f"{name} time", text])
    for each in run.get("rungs", ()):
        facts.append(["a rung lower", f"{each['change']}: {each['why']}"])
    parts = ["<h2>What happened</h2>", table(["", ""], facts)]
    if run["memory"]:
        parts.append(
            resident_memory(run["memory"], result["predicted_peak_bytes"], found["budget_bytes"])
        )
    if epochs:
        parts.append(accuracy(epochs))
    return parts


def _alternatives(found: Mapping[str, Any]) -> str:
    budget, chosen = found["budget_bytes"], None
    if found["config"]:
        chosen = identity_of(found["config"])
    rows: list[list[Cell]] = []
    marks: list[str] = []
    for each in found["alternatives"]:
        config, peak = each["config"], each["predicted_peak_bytes"]
        strategy = config["strategy"]
        slab, span = config["slab_bytes"], config.get("span_count")
        missing = max(0, peak - budget)
        rows.append(
            [
                esc(strategy if isinstance(strategy, str) else "+".join(strategy)),
                esc(config.get("precision", "float32")),
                ("none", 1e18) if slab is None else (format_bytes(slab), slab),
                ("none", 0) if span is None else (str(span), span),
                "yes" if config["update_in_backward"] else "no",
                (time_words(each), time_of(each)),
                (format_bytes(peak), peak),
                (format_bytes(missing) if missing else "fits", missing),
            ]
        )
        marks.append("chosen" if identity_of(config) == chosen else "over" if missing else "")
    header = ["strategy", "precision", "slabs", "spans", "update in backward", "time"]
    header += ["predicted peak", "missing"]
    return table(header, rows, marks, sortable=True)


def _sites(sites: Sequence[Mapping[str, Any]]) -> str:
    """A row for each part of a step, in order; the peak's is marked."""
    peak = max(each["live_bytes"] for each in sites)
    rows: list[list[Cell]] = [
        [
            (str(place), place),
            esc(each["site"]),
            (format_bytes(each["live_bytes"]), each["live_bytes"]),
            (f"{each['live_bytes'] / peak:.0%}", each["live_bytes"]),
        ]
        for place, each in enumerate(sites, start=1)
    ]
    marks = ["chosen" if each["live_bytes"] == peak else "" for each in sites]
    header = ["order", "site", "most live bytes", "of the peak"]
    return table(header, rows, marks, sortable=True)


def _rejected(rejected: Sequence[Mapping[str, Any]]) -> str:
    rows: list[list[Cell]] = [
        [
            esc(describe(Setting.from_json(each["config"]))),
            (format_bytes(each["predicted_peak_bytes"]), each["predicted_peak_bytes"]),
            (format_bytes(each["missing_bytes"]), each["missing_bytes"]),
            esc(each["reason"]),
        ]
        for each in rejected
    ]
    return table(["instead", "predicted peak", "missing", "reason"], rows, sortable=True)


def _key(kind: str) -> str:
    return f'<span class=key style="background:{COLOURS[kind]}"></span>'
