"""The pictures of a report, by matplotlib: budget and parts, memory against time, memory over time, accuracy."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from revedge.planner.explain import describe
from revedge.planner.report_entries import identity_of, kind_of, time_of, time_words
from revedge.planner.report_parts import Tip, figure
from revedge.planner.setting import Setting
from revedge.units import format_bytes

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


def budget_bar(
    parts: Mapping[str, int], kept: Sequence[int], budget: int, measured: int | None
) -> str:
    """Draw the parts of a prediction, up to the budget; ``kept``: bytes of activations that each run keeps."""

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


def memory_against_time(found: Mapping[str, Any]) -> str:
    """Draw every way to train this network, and which of them nothing beats in both."""
    chosen = identity_of(found["config"]) if found["config"] else None

    def draw(axes: Any, tip: Tip) -> None:
        front = [each for each in found["alternatives"] if each["on_front"]]
        axes.step(
            [time_of(each) for each in front],
            [each["predicted_peak_bytes"] / _MIB for each in front],
            where="post",
            color=COLOURS["weights"],
            label="nothing is better in both",
        )
        for each in found["alternatives"]:
            here = identity_of(each["config"]) == chosen
            colour = "#b00020" if here else COLOURS["weights" if each["on_front"] else "base"]
            (point,) = axes.plot(
                time_of(each),
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
        kind, left = kind_of(part), size
        for number, own in enumerate(kept if kind == "activations" else ()):
            if 0 < own <= left:
                yield kind, own, f"activations of run {number + 1}"
                left -= own
        if left or not size:
            yield kind, left, kind if left == size else "activations at work"


def live_bytes(found: Mapping[str, Any]) -> str:
    """Draw what kinds of tensors live at each operator of a traced step."""

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


def resident_memory(lines: Sequence[Mapping[str, Any]], predicted: int, budget: int) -> str:
    """Draw the memory of the processes over a training, of lines of its metrics."""

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


def accuracy(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Draw the accuracy of training and test over the epochs."""

    def draw(axes: Any, tip: Tip) -> None:
        for name, label in (("train_accuracy", "training"), ("test_accuracy", "test")):
            places = [line["epoch"] for line in epochs]
            (line,) = axes.plot(places, [100 * e[name] for e in epochs], "o-", label=label)
            tip(line, f"{label}: {100 * epochs[-1][name]:.2f} % at the end")
        axes.set(xlabel="epoch", ylabel="accuracy, %")
        axes.legend(frameon=False)

    return figure("Accuracy", draw)


def _words(each: Mapping[str, Any]) -> str:
    setting = Setting.from_json(each["config"])
    time = time_words(each)
    if "step_time" not in each:
        time += " times the time of the fastest kind"
    return f"{describe(setting)}: {format_bytes(each['predicted_peak_bytes'])}, {time}"
