"""The report: one HTML page of a plan, or of a training beside its plan. No network, no other file; some 100 KB.

Pictures are SVG by matplotlib (revedge[report]), with their texts as text, so that they scale to a phone and are found
by a search. What a mark means is its SVG title: shown below the picture when the mouse is on it, or when it is tapped.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from revedge.planner.explain import describe, like_with_like, time_text
from revedge.planner.report_parts import Cell, Tip, document, esc, figure, table
from revedge.planner.setting import Setting
from revedge.planner.step_time import StepTime
from revedge.units import format_bytes, format_seconds

_MIB = 2**20
_FAR = 8  # peaks further apart are drawn on a logarithmic scale
# Okabe and Ito's colours, which most colour-blind people tell apart; kinds of memory have one colour on all pictures.
COLOURS = {
    "base": "#999999",
    "supervisor": "#bbbbbb",
    "weights": "#0072b2",
    "optimizer": "#56b4e9",
    "gradients": "#009e73",
    "activations": "#e69f00",
    "workspace": "#d55e00",
    "data": "#cc79a7",
    "pool": "#8c6d31",
    "slack": "#f0e442",
    "spread": "#f0e442",
}


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
            _timeline(found["timeline"]),
        ]
    if found["alternatives"]:
        like = like_with_like(found.get("computed_peak_bytes"))
        parts += [f"<h2>Memory against time{esc(like)}</h2>", _front(found), _alternatives(found)]
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
    setting = _setting(config)
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
        [f"{_key(_kind(name))}{esc(_kind(name))}", (format_bytes(size), size)]
        for name, size in config["parts"].items()
    ]
    return [
        f"<p>{esc(describe(setting))}</p><p>{esc(said)}.</p>",
        _bar(config["parts"], found.get("timeline", {}).get("kept_bytes", ()), budget, measured),
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
        parts.append(_memory(run["memory"], result["predicted_peak_bytes"], found["budget_bytes"]))
    if epochs:
        parts.append(_accuracy(epochs))
    return parts


def _bar(parts: Mapping[str, int], kept: Sequence[int], budget: int, measured: int | None) -> str:
    def draw(axes: Any, tip: Tip) -> None:
        left = 0.0
        for name, size, text in _pieces(parts, kept):
            (bar,) = axes.barh(
                0, size / _MIB, left=left, height=0.5, color=COLOURS[name],
                edgecolor="white", linewidth=0.3 if name == "activations" else 0,
            )  # fmt: skip
            tip(bar, f"{text} {format_bytes(size)}")
            left += size / _MIB
        axes.axvline(budget / _MIB, color="#b00020", label=f"budget {format_bytes(budget)}")
        if measured:
            label = f"measured {format_bytes(measured)}"
            axes.axvline(measured / _MIB, color="black", linestyle="--", label=label)
        axes.set(yticks=[], xlabel="MiB", xlim=(0, max(left, budget / _MIB) * 1.02))
        axes.legend(loc="upper left", ncols=2, bbox_to_anchor=(0, 1.4), frameon=False)

    return figure("The budget and its parts", draw, height=1.7)


def _front(found: Mapping[str, Any]) -> str:
    chosen = _identity(found["config"]) if found["config"] else None

    def draw(axes: Any, tip: Tip) -> None:
        front = [each for each in found["alternatives"] if each["on_front"]]
        axes.step(
            [_time(each) for each in front],
            [each["predicted_peak_bytes"] / _MIB for each in front],
            where="post",
            color=COLOURS["weights"],
            label="nothing is better in both",
        )
        for each in found["alternatives"]:
            here = _identity(each["config"]) == chosen
            colour = "#b00020" if here else COLOURS["weights" if each["on_front"] else "base"]
            (point,) = axes.plot(
                _time(each),
                each["predicted_peak_bytes"] / _MIB,
                marker="*" if here else "o",
                markersize=14 if here else 6,
                color=colour,
                linestyle="",
                label="chosen" if here else None,
            )
            tip(point, _words(each))
        axes.axhline(found["budget_bytes"] / _MIB, color="#b00020", label="budget")
        axes.set(
            xlabel="time of a step, "
            + ("s" if "step_time" in found["alternatives"][0] else "in those of the fastest kind"),
            ylabel="predicted peak, MiB",
        )
        peaks = [each["predicted_peak_bytes"] for each in found["alternatives"]]
        if max(peaks) > _FAR * min(peaks):
            axes.set_yscale("log")
        axes.legend(frameon=False)

    return figure("Memory against time of every way to train this network", draw)


def _pieces(parts: Mapping[str, int], kept: Sequence[int]) -> Iterator[tuple[str, int, str]]:
    """Yield kind, bytes and words of each part; of activations what each run keeps, then what is worked on."""
    for part, size in parts.items():
        kind, left = _kind(part), size
        for number, own in enumerate(kept if kind == "activations" else ()):
            if 0 < own <= left:
                yield kind, own, f"activations of run {number + 1}"
                left -= own
        if left or not size:
            yield kind, left, kind if left == size else "activations at work"


def _timeline(found: Mapping[str, Any]) -> str:
    def draw(axes: Any, tip: Tip) -> None:
        kinds = [kind for kind in COLOURS if kind in found["bytes"]]
        series = [[size / _MIB for size in found["bytes"][kind]] for kind in kinds]
        areas = axes.stackplot(
            found["operations"], series, colors=[COLOURS[kind] for kind in kinds], labels=kinds,
            step="post",
        )  # fmt: skip
        for kind, area in zip(kinds, areas, strict=True):
            tip(area, f"{kind}: at most {format_bytes(max(found['bytes'][kind]))}")
        axes.set(xlabel="operators, in their order", ylabel="live tensors, MiB", xmargin=0)
        axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.25))

    return figure("Live bytes of tensors over one training step and one evaluation batch", draw)


def _memory(lines: Sequence[Mapping[str, Any]], predicted: int, budget: int) -> str:
    def draw(axes: Any, tip: Tip) -> None:
        times_s = [line["time_s"] for line in lines]
        (now,) = axes.plot(times_s, [line["now_bytes"] / _MIB for line in lines], label="measured")
        tip(now, "supervisor and trainer, resident, sampled once a second")
        axes.plot(times_s, [line["peak_bytes"] / _MIB for line in lines], ":", label="peak so far")
        axes.axhline(predicted / _MIB, color=COLOURS["activations"], label="predicted peak")
        axes.axhline(budget / _MIB, color="#b00020", label="budget")
        axes.set(xlabel="s", ylabel="MiB", ylim=(0, None))
        axes.legend(frameon=False, loc="lower right")

    return figure("Resident memory over the training", draw)


def _accuracy(epochs: Sequence[Mapping[str, Any]]) -> str:
    def draw(axes: Any, tip: Tip) -> None:
        for name, label in (("train_accuracy", "training"), ("test_accuracy", "test")):
            places = [line["epoch"] for line in epochs]
            (line,) = axes.plot(places, [100 * e[name] for e in epochs], "o-", label=label)
            tip(line, f"{label}: {100 * epochs[-1][name]:.2f} % at the end")
        axes.set(xlabel="epoch", ylabel="accuracy, %")
        axes.legend(frameon=False)

    return figure("Accuracy", draw)


def _alternatives(found: Mapping[str, Any]) -> str:
    budget, chosen = found["budget_bytes"], None
    if found["config"]:
        chosen = _identity(found["config"])
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
                (_time_text(each), _time(each)),
                (format_bytes(peak), peak),
                (format_bytes(missing) if missing else "fits", missing),
            ]
        )
        marks.append("chosen" if _identity(config) == chosen else "over" if missing else "")
    header = [
        "strategy",
        "precision",
        "slabs",
        "spans",
        "update in backward",
        "time",
        "predicted peak",
        "missing",
    ]
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


def _time(each: Mapping[str, Any]) -> float:
    """Return the middle of the interval of a step, s; where it was not measured, the factor."""
    if "step_time" not in each:
        return float(each["time_factor"])
    return StepTime(**each["step_time"]).middle_s


def _time_text(each: Mapping[str, Any]) -> str:
    if "step_time" not in each:
        return f"{each['time_factor']:.2f}"
    found = each["step_time"]
    return f"{format_seconds(found['least_s'])} to {format_seconds(found['most_s'])}"


def _words(each: Mapping[str, Any]) -> str:
    setting = Setting.from_json(each["config"])
    time = _time_text(each)
    if "step_time" not in each:
        time += " times the time of the fastest kind"
    return f"{describe(setting)}: {format_bytes(each['predicted_peak_bytes'])}, {time}"


def _identity(config: Mapping[str, Any]) -> str:
    return _setting(config).key()


def _setting(config: Mapping[str, Any]) -> Setting:
    names = [each.name for each in dataclasses.fields(Setting)]
    return Setting.from_json({name: config[name] for name in names if name in config})


def _kind(part: str) -> str:
    return part.removesuffix("_bytes")


def _key(kind: str) -> str:
    return f'<span class=key style="background:{COLOURS[kind]}"></span>'
