"""Looking into a step: membranes and spikes of the trained network, of a TorchScript file, of an ONNX file.

A file that is shipped shows logits and states only. Its probe is a twin that also shows, for every neuron, the membrane
before the reset and the spikes, and one that takes the spikes from outside. TorchScript's twins are compiled from the
same code; ONNX's are cut from the file itself. Parity compares the twin's answers with the file's own, bit by bit.

All values are numpy float32 arrays. The ONNX twins are in onnx_probe.py.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from revedge.engine import Branch
from revedge.errors import ExportError
from revedge.export.cells import FORCE, WATCH, Cell, ReversibleCell, StreamCell
from revedge.export.inference import InferenceNet, cell_of, inference_form
from revedge.export.torchscript import compile_script, read_torchscript
from revedge.models import SpikingNet, spiking_units

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Seen:
    """One step: logits, and per neuron the new state, the membrane before the reset, and the spikes.

    ``streams`` is what branches add to streams, in order of execution, those of the last run left out.
    """

    logits: Array
    states: list[Array]
    membranes: list[Array]
    spikes: list[Array]
    streams: list[Array] = field(default_factory=list)


class TrainedProbe:
    """The trained network itself, in eval mode, stepped in plain PyTorch; a copy, the network is not touched."""

    def __init__(self, net: SpikingNet) -> None:
        self.net = copy.deepcopy(net).cpu().eval().requires_grad_(False)
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._streams: list[Tensor] = []
        self.stream_names: list[
            str
        ] = []  # of the branches, in order of execution; known after a step
        names = {module: name for name, module in self.net.named_modules()}
        for run in self.net.runs()[:-1]:
            for branch in run.modules():
                if isinstance(branch, Branch) and branch.norm is not None:
                    object.__setattr__(branch, "step", self._added(branch.step, names[branch]))
        self.thresholds: list[float] = []  # of the neurons, in the order of their states
        specs = self.net.state_spec()
        for spec, (_, unit) in zip(specs, spiking_units(self.net), strict=True):
            neuron = unit.neuron
            assert neuron is not None
            self.thresholds.append(neuron.v_threshold)
            cell = cell_of(neuron, spec.shape, WATCH)
            # An attribute of the copy hides the method of its class.
            object.__setattr__(neuron, "step", self._watched(neuron.step, cell, spec.name))

    def _watched(self, step: Any, cell: Cell | ReversibleCell, name: str) -> Any:
        def watched(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            y, v_next = step(x, v)
            out, (_, h, s) = cell(x, [v])
            if not torch.equal(out, y):
                raise ExportError(
                    f"{name} does not follow the equations that export writes; is it a neuron of your own?"
                )
            self._seen.append((h, s))
            return y, v_next

        return watched

    def _added(self, step: Any, name: str) -> Any:
        def added(x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            y, new = step(x, states)
            self._streams.append(y)
            self.stream_names.append(name)
            return y, new

        return added

    def form(self, mode: int) -> InferenceNet:
        """The form that files are written from; see `revedge.export.cells` for the modes."""
        return inference_form(self.net, mode)

    def rest(self, batch: int) -> list[Array]:
        """States at rest."""
        specs = self.net.state_spec()
        return [np.full((batch, *spec.shape), spec.init, np.float32) for spec in specs]

    def answer(self, x: Array) -> Array:
        """Mean logits ``[B, K]`` of a recording (or of images), by the network's own multi-step forward."""
        with torch.no_grad():
            logits: Array = self.net(torch.from_numpy(x)).numpy()
        return logits

    def step(self, x: Array, states: list[Array]) -> Seen:
        """One time step."""
        for one in (self._seen, self._streams, self.stream_names):
            one.clear()
        with torch.no_grad():
            logits, new = self.net.step(torch.from_numpy(x), [torch.from_numpy(v) for v in states])
        membranes, spikes = zip(*self._seen, strict=True) if self._seen else ((), ())
        streams = _arrays(self._streams)
        return Seen(_array(logits), _arrays(new), _arrays(membranes), _arrays(spikes), streams)


class FileProbe(ABC):
    """A file and its twins."""

    @abstractmethod
    def shipped(self, x: Array, states: list[Array]) -> tuple[Array, list[Array]]:
        """What the file answers: logits and new states."""

    @abstractmethod
    def watched(self, x: Array, states: list[Array]) -> Seen:
        """The twin that shows membranes and spikes."""

    @abstractmethod
    def forced(self, x: Array, given: Seen, states: list[Array]) -> Seen:
        """The twin in which every neuron hands on, and is reset by, the spikes of ``given`` instead of its own.

        Streams grow by what branches added in ``given``. A file without rounding takes no streams, and shows none.
        """


class TorchScriptProbe(FileProbe):
    """Twins of ``path`` compiled from ``net``."""

    def __init__(self, path: Path, net: SpikingNet) -> None:
        self._file = read_torchscript(path)[0]
        self._watch = compile_script(self.twin(net, WATCH))
        force = self.twin(net, FORCE)
        self._order = ForcedOrder(force)
        self._force = compile_script(force)

    def twin(self, net: SpikingNet, mode: int) -> InferenceNet:
        """The form that shows, or takes, spikes."""
        return inference_form(net, mode)

    def shipped(self, x: Array, states: list[Array]) -> tuple[Array, list[Array]]:
        """See `FileProbe`."""
        logits, new = _call(self._file, x, states)
        return logits, new

    def watched(self, x: Array, states: list[Array]) -> Seen:
        """See `FileProbe`."""
        logits, given = _call(self._watch, x, states)
        return Seen(logits, given[0::3], given[1::3], given[2::3])

    def forced(self, x: Array, given: Seen, states: list[Array]) -> Seen:
        """See `FileProbe`."""
        return self._order.seen(*_call(self._force, x, self._order.carry(given, states)))


class ForcedOrder:
    """In which order a form in mode FORCE takes states, spikes and streams, and gives what it has seen."""

    def __init__(self, form: InferenceNet) -> None:
        cells = (Cell, ReversibleCell, StreamCell)
        self._streams = [isinstance(m, StreamCell) for m in form.modules() if isinstance(m, cells)]

    def carry(self, given: Seen, states: list[Array]) -> list[Array]:
        """What the form takes."""
        pairs, streams = zip(states, given.spikes, strict=True), iter(given.streams)
        carry: list[Array] = []
        for stream in self._streams:
            carry += [next(streams)] if stream else next(pairs)
        return carry

    def seen(self, logits: Array, given: list[Array]) -> Seen:
        """What it gave."""
        seen, left = Seen(logits, [], [], [], []), iter(given)
        for stream in self._streams:
            if stream:
                seen.streams.append(next(left))
                continue
            for values in (seen.states, seen.membranes, seen.spikes):
                values.append(next(left))
        return seen


def _call(
    module: torch.jit.ScriptModule, x: Array, carry: list[Array]
) -> tuple[Array, list[Array]]:
    with torch.no_grad():
        logits, given = module(torch.from_numpy(x), [torch.from_numpy(v) for v in carry])
    return _array(logits), _arrays(given)


def _array(value: Tensor) -> Array:
    array: Array = value.contiguous().numpy()
    return array


def _arrays(values: Any) -> list[Array]:
    return [_array(value) for value in values]
