"""One time step as ONNX nodes under construction: its states, its weights, and which rule writes which module.

A rule takes the graph, the module and the name of its input, and returns the name of its output. Neurons take their
state from ``StepGraph.take`` and hand the new one to ``StepGraph.give``, in order of execution, as the lists in
`revedge.export.blocks` do. To export a module of another type, write a rule for it in onnx_rules.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from revedge.errors import ExportError
from revedge.export.int8_weights import as_int8
from revedge.export.onnx_builder import Graph

Rule = Callable[["StepGraph", Any, str], str]
RULES: dict[type[nn.Module], Rule] = {}


class StepGraph(Graph):
    """A graph, and the states that go into and come out of the step being written.

    Args:
        opset: see `Graph`.
        home: see `Graph`.
        int8: store weights as 8-bit integers with a power-of-two scale; they must lie on such a grid.
        at_once: the target has `ONE_PASS`: a neuron fires, and is reset, in one pass over memory each.
        keeps_states: states never leave the graph, so they may be kept as their negative where that is faster.
        short: see `Graph`.
    """

    def __init__(
        self,
        opset: int,
        home: str = "",
        *,
        int8: bool = False,
        at_once: bool = False,
        keeps_states: bool = False,
        short: bool = False,
    ) -> None:
        super().__init__(opset, home, short=short)
        self.int8 = int8
        self.at_once = at_once
        self.keeps_states = keeps_states
        self.states: list[str] = []  # that neurons have yet to take
        self.new_states: list[str] = []
        self.negative: list[bool] = []  # of the new states
        self._weights: dict[str, str] = {}  # multiplied out, for all steps

    def take(self) -> str:
        """Return the state of the next neuron."""
        return self.states.pop(0)

    def give(self, state: str, *, negative: bool = False) -> None:
        """Hand on a neuron's new state, or its negative."""
        self.new_states.append(state)
        self.negative.append(negative)

    def apply(self, module: nn.Module, x: str, name: str) -> str:
        """Write ``module``, which is the part ``name`` of the present one.

        Raises:
            ExportError: no rule is known for its type.
        """
        rule = RULES.get(type(module))
        with self.within(name):
            if rule is None:
                raise ExportError(
                    f"{self.path}: no ONNX rule is known for a layer of type {type(module).__name__}; use layers of "
                    "torch.nn that revedge knows, or --format torchscript"
                )
            return rule(self, module, x)

    def weight(self, name: str, value: Tensor) -> str:
        """Store a parameter of the present module; ``weight`` as int8 if that was asked for."""
        array: npt.NDArray[np.float32] = value.detach().cpu().numpy()
        place = f"{self.place}.{name}"
        if not (self.int8 and name == "weight"):
            return self.constant(place, array)
        if place not in self._weights:
            levels, scale = as_int8(array, f"{self.path}.{name}")
            inputs = [self.constant(f"{place}.int8", levels), self.scales(f"{place}.scale", scale)]
            axis = {"axis": 0} if scale.ndim else {}
            step, self.step = self.step, self.shared
            made = self.op("DequantizeLinear", inputs, "weight", rank=array.ndim, **axis)
            self.step, self._weights[place] = step, made
        return self._weights[place]

    def scales(self, name: str, scale: npt.NDArray[np.float32]) -> str:
        """Store what is multiplied with; a scalar once for all who use it."""
        return self.constant(name, scale) if scale.ndim else self.scalar(float(scale))


def rule(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a rule for modules of exactly these types."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register
