"""A NIR file beside the trained network: read back, and compared neuron by neuron like every other file."""

from pathlib import Path

import torch
from torch import Tensor

from revedge.export.nir_import import NirStep, read_nir
from revedge.export.probes import Array, FileProbe, Seen, TrainedProbe


class NirProbe(FileProbe):
    """The graph of ``path``; its membranes are scaled back to those of the network.

    Args:
        path: written by `revedge.export.nir_graph.write_nir`.
        trained: the network.
    """

    def __init__(self, path: Path, trained: TrainedProbe) -> None:
        self._net = read_nir(path)
        names = [spec.name.replace(".", "_") for spec in trained.net.state_spec()]
        self._places = [names.index(name) for name in self._net.neurons]  # of its neurons in ours
        self._units: list[float] = []  # of the network's membranes in those of the graph
        for name, place in zip(self._net.neurons, self._places, strict=True):
            threshold = float(self._net.layer(name).get_buffer("v_threshold").flatten()[0])
            ratio = trained.thresholds[place] / threshold
            self._units.append(1.0 if abs(ratio - 1.0) < 1e-5 else ratio)

    def shipped(self, x: Array, states: list[Array]) -> tuple[Array, list[Array]]:
        """See `FileProbe`."""
        seen = self.watched(x, states)
        return seen.logits, seen.states

    def watched(self, x: Array, states: list[Array]) -> Seen:
        """See `FileProbe`."""
        return self._seen(self._step(x, states, None))

    def forced(self, x: Array, given: Seen, states: list[Array]) -> Seen:
        """See `FileProbe`."""
        return self._seen(self._step(x, states, given.spikes))

    def _step(self, x: Array, states: list[Array], spikes: list[Array] | None) -> NirStep:
        pairs = zip(self._places, self._units, strict=True)
        given = [torch.from_numpy(states[place]) / unit for place, unit in pairs]
        forced = (
            None if spikes is None else [torch.from_numpy(spikes[place]) for place in self._places]
        )
        with torch.no_grad():
            return self._net.step(torch.from_numpy(x), given, forced)

    def _seen(self, step: NirStep) -> Seen:
        def ours(values: list[Tensor], *, scaled: bool) -> list[Array]:
            found: dict[int, Array] = {}
            for place, unit, value in zip(self._places, self._units, values, strict=True):
                found[place] = (value * unit if scaled else value).contiguous().numpy()
            return [found[place] for place in range(len(found))]

        return Seen(
            step.output.contiguous().numpy(),
            ours(step.states, scaled=True),
            ours(step.membranes, scaled=True),
            ours(step.spikes, scaled=False),
        )
