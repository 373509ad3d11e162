"""Graphs of whole sequences with their spikes as outputs: what `exact_numerics.py` looks into them with.

A sequence graph shows logits, and blocks the last states. Its spikes are inside: in the body of a Scan they become
values that it gives per step, in a function more results of every call. Nothing else of the graph is touched.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from revedge.export.manifest import Manifest
from revedge.export.onnx_contained import contained_step
from revedge.export.onnx_graph import BODY, OWN_DOMAIN
from revedge.export.onnx_places import firing_of, places_of, points_of

Stepped = tuple[Any, list[Any], list[Any]]  # logits, states (none: not shown), spikes
Way = Callable[[Any], Iterator[Stepped]]  # a recording [T, B, C, H, W] -> its steps


class ShownSequence:
    """A sequence graph of ``net`` that shows its spikes.

    Args:
        model: of graph scan, blocks or unrolled; copied.
        manifest: of it.
        net: the network.
    """

    def __init__(self, model: Any, manifest: Manifest, net: Any) -> None:
        self.manifest = manifest
        self.model = copy.deepcopy(model)
        points = points_of(contained_step(model, manifest))
        self._firing = firing_of(net)
        self._places = places_of(points, self._firing, manifest)
        self._columns = [point.columns for point in points]
        names = [point.spikes for point in points]
        self._shown = self._in_function(names) if model.functions else self._in_scan(names)
        states = manifest.states if manifest.graph == "blocks" else ()
        self.outputs = ["logits", *(s.next for s in states), *itertools.chain(*self._shown)]

    def way(self, run: Callable[[list[str], dict[str, Any]], list[Any]]) -> Way:
        """The graph as a way to run a recording; ``run`` is that of a session or of an evaluator."""

        def steps(x: Any) -> Iterator[Stepped]:
            feed = {"x": x[0] if self.manifest.static else x}
            blocks = self.manifest.graph == "blocks"
            states = self.manifest.states if blocks else ()
            feed |= {s.name: np.full((x.shape[1], *s.shape), s.init, np.float32) for s in states}
            found = dict(zip(self.outputs, run(self.outputs, feed), strict=True))
            last = [found[s.next] for s in states]
            for t, logits in enumerate(found["logits"]):
                spikes = self._spikes(found, t)
                yield logits, last if t == len(x) - 1 else [], spikes

        return steps

    def _spikes(self, found: dict[str, Any], t: int) -> list[Any]:
        if len(self._shown) == 1:  # all steps in one value
            parts = [found[name][t] for name in self._shown[0]]
        else:
            parts = [found[name] for name in self._shown[t]]
        parts = [part[..., own] for part, own in zip(parts, self._columns, strict=True)]
        return [
            np.concatenate([parts[place] for place in places], firing.dim)
            for firing, places in zip(self._firing, self._places, strict=True)
        ]

    def _in_scan(self, names: list[str]) -> list[list[str]]:
        scan = next(node for node in self.model.graph.node if node.op_type == "Scan")
        body = next(one.g for one in scan.attribute if one.name == "body")
        shown = [f"shown/{name}" for name in names]
        body.output.extend(_value(BODY + name) for name in names)
        scan.output.extend(shown)
        self.model.graph.output.extend(map(_value, shown))
        return [shown]

    def _in_function(self, names: list[str]) -> list[list[str]]:
        self.model.functions[0].output.extend(names)
        shown = []
        for call in (node for node in self.model.graph.node if node.domain == OWN_DOMAIN):
            shown.append([f"shown/{len(shown)}/{name}" for name in names])
            call.output.extend(shown[-1])
            self.model.graph.output.extend(map(_value, shown[-1]))
        return shown


def _value(name: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
