"""Does the file do what the trained network does? Three questions, over at least 16 steps of real data.

1. Forced. Every neuron of the file gets the trained network's states and spikes, and every stream grows by what the
   trained network's branches added, so that no difference can grow. Then what branches add, membranes, new states and
   logits must agree within rounding bounds computed for each value (rounding.py), and spikes
   may differ only where the membrane is within its bound of the threshold. This is the test of correctness: there are
   no statistics in it, and it holds for every neuron of every layer.
2. Free running, at two batch sizes. Spikes that differ are counted, layer by layer. Float networks flip a few spikes
   near thresholds whenever batch, threads or runtime change, so a count is reported, not judged.
3. The whole test split. No prediction may change.

A format without rounding (`ParityReport.rounds`) is judged by the bounds of question 1 alone, which allow for what its
streams are off the grid: that flips more spikes than rounding errors do, and now and then one that decides.

Spikes of the file are those of its twin (probes.py), whose logits and states are compared with the file's bit by bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from revedge.errors import ExportError
from revedge.export.probes import Array, FileProbe, Seen, TrainedProbe
from revedge.export.rounding import step_bounds

STEPS = 16
FORCED_FLIPS_PER_MILLION = 20
BATCHES = (1, 8)
SHORT = 4  # steps of the shorter of two sequences


@dataclass(slots=True)
class ParityReport:
    """What was compared and what was found.

    Attributes:
        spike_flips: spikes of the free-running file that are not those of the free-running network, both batches.
        forced_flips: the same when every neuron gets the network's states, spikes and streams; rounding alone.
        moved_values: of what branches add to streams when forced, values that a rounding error has put on the grid's
            next step; compared_values: of so many.
        compared_spikes: neurons times steps times samples; the same number free running and forced.
        farthest_flip: largest distance from the threshold of a membrane whose forced spike differs.
        flips_per_layer: path of the neuron -> spike_flips of that neuron.
        largest_share_of_bound: largest forced difference, as a share of its rounding bound; above 1 is an error.
        max_forced_difference: largest forced difference of a membrane, state or logit.
        max_bound: largest rounding bound.
        twin_identical: the twin whose spikes are counted gave the file's logits and states bit for bit.
        sequence_identical: a sequence graph gave the logits and states of its step, called in a loop, bit for bit.
        rounds: the file puts streams on the grid, as the network does. Where it cannot (NIR), forced_flips and
            argmax_changed are reported, not judged.
        steps, batches: of the comparison.
        test_samples, argmax_changed, max_logit_difference, accuracy, reference_accuracy: on the whole test split.
    """

    steps: int
    batches: tuple[int, ...]
    rounds: bool = True
    spike_flips: int = 0
    forced_flips: int = 0
    farthest_flip: float = 0.0
    moved_values: int = 0
    compared_values: int = 0
    compared_spikes: int = 0
    flips_per_layer: dict[str, int] = field(default_factory=dict)
    largest_share_of_bound: float = 0.0
    max_forced_difference: float = 0.0
    max_bound: float = 0.0
    twin_identical: bool = True
    sequence_identical: bool = True
    test_samples: int = 0
    argmax_changed: int = 0
    max_logit_difference: float = 0.0
    accuracy: float = 0.0
    reference_accuracy: float = 0.0


def compare_steps(
    trained: TrainedProbe, file: FileProbe, frames: Array, report: ParityReport
) -> None:
    """Questions 1 and 2 on ``frames`` ``[S, B, C, H, W]``; adds to ``report``.

    Raises:
        ExportError: a value is further from the network's than rounding can explain; names neuron, step and amounts.
    """
    specs = trained.net.state_spec()
    rest = [np.full((frames.shape[1], *spec.shape), spec.init, np.float32) for spec in specs]
    names = [spec.name for spec in specs]
    reference, free = rest, rest
    for step, x in enumerate(np.ascontiguousarray(frames)):
        expected = trained.step(x, reference)
        forced = file.forced(x, expected, reference)
        _judge(trained, x, reference, expected, forced, names, step, report)
        seen = file.watched(x, free)
        logits, states = file.shipped(x, free)
        same = np.array_equal(logits, seen.logits) and all(map(np.array_equal, states, seen.states))
        report.twin_identical = report.twin_identical and same
        for name, ours, theirs in zip(names, expected.spikes, seen.spikes, strict=True):
            flips = int(np.count_nonzero(ours != theirs))
            report.flips_per_layer[name] = report.flips_per_layer.get(name, 0) + flips
            report.spike_flips += flips
            report.compared_spikes += ours.size
        reference, free = expected.states, states


def _judge(
    trained: TrainedProbe,
    x: Array,
    states: list[Array],
    expected: Seen,
    forced: Seen,
    names: list[str],
    step: int,
    report: ParityReport,
) -> None:
    streams = [torch.from_numpy(s) for s in expected.streams]
    bound_logits, bound_membranes, bound_states, bound_streams = step_bounds(
        trained.net,
        torch.from_numpy(x),
        [torch.from_numpy(v) for v in states],
        [torch.from_numpy(s) for s in expected.spikes],
        streams if forced.streams else None,
    )
    checks: list[tuple[str, Array, Array, Any]] = [
        ("logits", expected.logits, forced.logits, bound_logits)
    ]
    for index, name in enumerate(names):
        checks.append(
            (
                f"{name} membrane",
                expected.membranes[index],
                forced.membranes[index],
                bound_membranes[index],
            )
        )
        checks.append(
            (f"{name} state", expected.states[index], forced.states[index], bound_states[index])
        )
    if forced.streams:
        every = (trained.stream_names, expected.streams, forced.streams, bound_streams)
        for name, ours, theirs, bound in zip(*every, strict=True):
            checks.append((f"{name}, what it adds,", ours, theirs, bound))
            report.moved_values += int(np.count_nonzero(ours != theirs))
            report.compared_values += ours.size
    for name, ours, theirs, bound in checks:
        if ours.shape != theirs.shape:
            raise ExportError(
                f"{name} has shape {theirs.shape} in the file and {ours.shape} in the network"
            )
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        limit = bound.numpy().astype(np.float64)
        share = difference / np.maximum(limit, np.finfo(np.float32).tiny)
        if not np.all(difference <= limit):  # NaN fails too
            worst = np.unravel_index(np.argmax(np.nan_to_num(share, nan=np.inf)), share.shape)
            raise ExportError(
                f"step {step}: {name} differs by {difference[worst]:.3g} from the trained network, rounding explains "
                f"at most {limit[worst]:.3g}; the file is rejected, use another --format or --opset"
            )
        report.max_forced_difference = max(
            report.max_forced_difference, float(difference.max(initial=0.0))
        )
        report.max_bound = max(report.max_bound, float(limit.max(initial=0.0)))
        report.largest_share_of_bound = max(
            report.largest_share_of_bound, float(share.max(initial=0.0))
        )
    for index, name in enumerate(names):
        changed = expected.spikes[index] != forced.spikes[index]
        report.forced_flips += int(np.count_nonzero(changed))
        away = np.abs(expected.membranes[index] - trained.thresholds[index])
        report.farthest_flip = max(report.farthest_flip, float(away[changed].max(initial=0.0)))
        wrong = changed & (away > bound_membranes[index].numpy())
        if np.any(wrong):
            raise ExportError(
                f"step {step}: {name} fires differently from the trained network at a membrane {away[wrong].max():.3g} "
                "away from its threshold; the file is rejected, use another --format or --opset"
            )


def check_forced_flips(report: ParityReport) -> None:
    """Spikes that differ although states and spikes are given must be as rare as values that close to a threshold.

    Raises:
        ExportError: more than 20 in a million (and more than two), in a file that rounds.
    """
    allowed = max(2.0, FORCED_FLIPS_PER_MILLION * report.compared_spikes / 1e6)
    if report.rounds and report.forced_flips > allowed:
        raise ExportError(
            f"{report.forced_flips} of {report.compared_spikes} spikes differ although states and spikes are given, "
            f"at most {allowed:.0f} can be rounding; the file is rejected, use another --format or --opset"
        )


def compare_predictions(
    batches: Iterator[tuple[npt.NDArray[np.int64], Array, Array]], report: ParityReport
) -> None:
    """Question 3. Each item: labels, the network's mean logits ``[B, K]``, the file's.

    Raises:
        ExportError: a prediction changed, in a file that rounds.
    """
    right = right_reference = 0
    for labels, ours, theirs in batches:
        report.test_samples += len(labels)
        report.argmax_changed += int(np.count_nonzero(ours.argmax(1) != theirs.argmax(1)))
        report.max_logit_difference = max(
            report.max_logit_difference, float(np.abs(ours - theirs).max(initial=0.0))
        )
        right += int(np.count_nonzero(theirs.argmax(1) == labels))
        right_reference += int(np.count_nonzero(ours.argmax(1) == labels))
    report.accuracy = right / max(1, report.test_samples)
    report.reference_accuracy = right_reference / max(1, report.test_samples)
    if report.rounds and report.argmax_changed:
        raise ExportError(
            f"{report.argmax_changed} of {report.test_samples} predictions on the test split changed (largest logit "
            f"difference {report.max_logit_difference:.3g}); the file is rejected, use another --format or --opset"
        )
