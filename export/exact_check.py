"""Exact exports are held to equality: every spike, state and logit of a file is that of the exact form, bit for bit.

The reference is the exact form in eager PyTorch. There are no bounds and no forced steps: two computations of integers
below 2**24 have nothing to differ in, so the first bit that does is an error.
"""

import copy
from typing import Any

import numpy as np
import torch

from revedge.errors import ExportError
from revedge.export.cells import WATCH
from revedge.export.exact_form import exact_form
from revedge.export.inference import InferenceNet
from revedge.export.parity import ParityReport
from revedge.export.probes import Array, FileProbe, Seen, TorchScriptProbe, TrainedProbe
from revedge.models import SpikingNet


class ExactProbe(TrainedProbe):
    """The exact form in eager PyTorch, in the place of the trained network.

    Args:
        net: on its exact grid.
        input_scale: what 8-bit frames are multiplied with.
    """

    def __init__(self, net: SpikingNet, input_scale: float) -> None:
        self.net = copy.deepcopy(net).cpu().eval().requires_grad_(False)
        self.input_scale = input_scale
        self._form = exact_form(self.net, input_scale, WATCH).net

    def form(self, mode: int) -> InferenceNet:
        """See `TrainedProbe`."""
        return exact_form(self.net, self.input_scale, mode).net

    def step(self, x: Array, states: list[Array]) -> Seen:
        """One time step."""
        with torch.no_grad():
            logits, given = self._form(torch.from_numpy(x), [torch.from_numpy(v) for v in states])
        logits, *given = [value.contiguous().numpy() for value in (logits, *given)]
        return Seen(logits, given[0::3], given[1::3], given[2::3])

    def answer(self, x: Array) -> Array:
        """Mean logits ``[B, K]`` of a recording ``[T, B, C, H, W]``, or of images ``[B, C, H, W]``, from rest."""
        frames: Any = [x] * self.net.timesteps if self.net.static else x
        states = self.rest(x.shape[-4])
        total: Any = None
        for frame in frames:
            seen = self.step(np.ascontiguousarray(frame), states)
            total = seen.logits if total is None else total + seen.logits
            states = seen.states
        mean: Array = total / np.float32(len(frames))
        return mean


class ExactTorchScriptProbe(TorchScriptProbe):
    """Twins of a TorchScript file of an exact form."""

    def __init__(self, path: Any, net: SpikingNet, input_scale: float) -> None:
        self._input_scale = input_scale
        super().__init__(path, net)

    def twin(self, net: SpikingNet, mode: int) -> InferenceNet:
        """See `TorchScriptProbe`."""
        return exact_form(net, self._input_scale, mode).net


def compare_exactly(
    trained: ExactProbe, file: FileProbe, frames: Array, report: ParityReport
) -> None:
    """Compare a file with the exact form on ``frames`` ``[S, B, C, H, W]``; adds to ``report``.

    Raises:
        ExportError: a bit differs; names place and step.
    """
    names = [spec.name for spec in trained.net.state_spec()]
    states = trained.rest(frames.shape[1])
    for step, x in enumerate(np.ascontiguousarray(frames)):
        expected = trained.step(x, states)
        logits, new = file.shipped(x, states)
        seen = file.watched(x, states)
        _demand(step, "logits", expected.logits, logits)
        _demand(step, "logits of its twin", expected.logits, seen.logits)
        for index, name in enumerate(names):
            _demand(step, f"{name} state", expected.states[index], new[index])
            _demand(step, f"{name} membrane", expected.membranes[index], seen.membranes[index])
            _demand(step, f"{name} spikes", expected.spikes[index], seen.spikes[index])
            report.flips_per_layer.setdefault(name, 0)
            report.compared_spikes += expected.spikes[index].size
        states = expected.states


def demand_equal_answers(report: ParityReport) -> None:
    """Raise ExportError unless all mean logits, and a sequence graph's own steps, were those of the exact form."""
    if not report.sequence_identical:
        raise ExportError(
            "the sequence graph, optimized, does not give the bits of its own step; the file is rejected"
        )
    if report.max_logit_difference:
        raise ExportError(
            f"mean logits on the test split differ by up to {report.max_logit_difference:.3g} from the exact form; "
            "the file is rejected"
        )


def _demand(step: int, what: str, ours: Array, theirs: Array) -> None:
    if ours.shape != theirs.shape or not np.array_equal(ours, theirs):
        wrong = int(np.count_nonzero(ours != theirs)) if ours.shape == theirs.shape else "all"
        raise ExportError(
            f"step {step}: {wrong} of {ours.size} values of {what} are not those of the exact form; the file is "
            "rejected"
        )
