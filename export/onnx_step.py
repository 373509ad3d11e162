"""One time step as ONNX nodes under construction: its states, its weights, and which rule writes which module.

A rule takes the graph, the module and the name of its input, and returns the name of its output. Neurons take their
state from ``StepGraph.take`` and hand the new one to ``StepGraph.give``, in order of execution, as the lists in
`revedge.export.blocks` do. To export a module of another type, write a rule for it in onnx_layers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from revedge.errors import ExportError
from revedge.export.int8_weights import as_int8
from revedge.export.onnx_builder import Graph

Rule = Callable[["StepGraph", Any, str], str]
RULES: dict[type[nn.Module], Rule] = {}
MULTIPLES: set[type[nn.Module]] = (
    set()
)  # whose rule takes streams as integers, see `StepGraph.times`
OFFSETS: set[type[nn.Module]] = set()  # and with an offset in them, see `StepGraph.rounded`
OFFSET = 1.5 * 2.0**23


@dataclass
class Carried:
    """What a graph hands on from step to step.

    Attributes:
        index: of the state.
        value: its name, of which the new state is a part.
        multiple: of what it is the state's.
        shape: without the batch.
        others: indices of further states that it is, or is a part of.
    """

    index: int
    value: str
    multiple: float
    shape: tuple[int, ...]
    others: list[int] = field(default_factory=list)


@dataclass
class Twin:
    """A neuron that others may be equal to: its spikes, and what is carried of it."""

    spikes: str
    carried: Carried


class StepGraph(Graph):
    """A graph, and the states that go into and come out of the step being written.

    Args:
        opset: see `Graph`.
        home: see `Graph`.
        int8: store weights as 8-bit integers with a power-of-two scale; they must lie on such a grid.
        at_once: the target has `ONE_PASS`: a neuron fires, and is reset, in one pass over memory each.
        keeps_states: states never leave the graph, so they may be kept as a multiple where that is faster.
        short: see `Graph`.
        at_rest: every run of the graph begins at rest, so that neurons that are the same stay the same.
        integers: spikes may be multiplied with 8-bit weights as integers; see onnx_integers.py.

    Attributes:
        times: value -> the power of two by which it is larger than what it stands for; not listed: 1. Streams on their
            grid are integers in graphs that keep their states, and `plain` gives them to who must know better.
        columns: columns of zeros that the convolution behind the present neuron wants left and right of its spikes.
        wider: spikes that have them.
        offsets: value -> what is added to the integer that it stands for; see `rounded`.
        wanted: the offset that the rounding at the end of the present branch should leave; None: none, elsewhere.
        larger: by what power of two the operator at the end of the present part should give larger values.
        parts: value -> the values that it is made of, along the channels.
        spiking: values that are 0 or 1 -> their shape without the batch.
        twins: what is known of a neuron -> it; see onnx_neurons.py.
        carried: the states of which a value is carried, in order of their numbers, and what further states it is of.
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
        at_rest: bool = False,
        integers: bool = False,
    ) -> None:
        super().__init__(opset, home, short=short)
        self.integers = integers
        self.at_rest = at_rest
        self.int8 = int8
        self.at_once = at_once
        self.keeps_states = keeps_states
        self.states: list[str] = []  # that neurons have yet to take
        self.shapes: dict[
            str, tuple[int, ...]
        ] = {}  # of states, without the batch; of what is carried of them
        self.shape: tuple[int, ...] = ()  # of the present neuron's
        self.carried: list[Carried] = []
        self.times: dict[str, float] = {}
        self.columns = (0, 0)
        self.larger = 1.0
        self.offsets: dict[str, float] = {}
        self.wanted: float | None = None
        self._settled: dict[str, str] = {}
        self.wider: dict[str, tuple[int, int]] = {}
        self.parts: dict[str, list[str]] = {}
        self.spiking: dict[str, tuple[int, ...]] = {}
        self.twins: dict[Any, Twin] = {}
        self._taken = 0
        self._shared: dict[str, str] = {}  # what all steps read -> the value

    def begin(self, states: dict[str, tuple[int, ...]]) -> None:
        """Begin a time step with these states: name -> shape without the batch."""
        self.states, self.shapes = list(states), dict(states)
        self.carried, self.parts, self.twins, self._taken = [], {}, {}, 0
        self.ranks.update({name: 1 + len(shape) for name, shape in states.items()})

    def take(self) -> str:
        """Return the state of the next neuron."""
        state = self.states.pop(0)
        self.shape = self.shapes[state]
        self._taken += 1
        return state

    def give(self, state: str, multiple: float = 1.0) -> None:
        """Hand on a neuron's new state, or a multiple of it."""
        self.carried.append(Carried(self._taken - 1, state, multiple, self.shape))

    def merge(self, twins: "list[Twin]") -> None:
        """Let the neuron whose state was just taken begin with ``twins``; what it hands on is only what is left."""
        for twin in twins:
            twin.carried.others.append(self._taken - 1)
        channels = self.shape[0] - sum(twin.carried.shape[0] for twin in twins)
        self.shape = (channels, *self.shape[1:])

    def join(self, parts: list[str], label: str = "") -> str:
        """Values beside each other along the channels, to be had one by one, too."""
        parts = [self.settled(part) for part in parts]
        out = self.together("Concat", parts, label, axis=1)
        self.parts[out] = [piece for part in parts for piece in self.parts.get(part, [part])]
        return out

    @property
    def keeps_integers(self) -> bool:
        """Whether streams are kept as the integers that they are on their grid."""
        return self.at_once and self.keeps_states

    def rounded(self, x: str, offset: float) -> str:
        """Round ``x``, below 2^22, to integers, half to even, and leave ``offset`` in it: `OFFSET` or its negative.

        Between 2^23 and 2^24 float32 are the integers, so an addition rounds to them as Round does, in less than half
        of its time. Two such values of opposite offsets have a sum without any. Sub, because a sum would be
        taken into the bias of a convolution before it, which is no integer.
        """
        out = self.op("Sub", [x, self.scalar(-offset)], "round")
        self.offsets[out] = offset
        return out

    def settled(self, x: str) -> str:
        """``x`` without its offset, once for all who read it."""
        if x not in self.offsets:
            return x
        if x not in self._settled:
            out = self.op("Sub", [x, self.scalar(self.offsets[x])], "stream")
            self.times[out] = self.times.get(x, 1.0)
            self._settled[x] = out
        return self._settled[x]

    def plain(self, x: str) -> str:
        """What ``x`` stands for."""
        x = self.settled(x)
        times = self.times.get(x, 1.0)
        return x if times == 1.0 else self.op("Mul", [x, self.scalar(1.0 / times)], "plain")

    def together(self, kind: str, values: list[str], label: str = "", **attributes: int) -> str:
        """An Add or Concat: of values that are larger by the same power of two as they are."""
        left = sum(self.offsets.get(value, 0.0) for value in values)
        if kind != "Add" or left:
            values = [self.settled(value) for value in values]
        times = {self.times.get(value, 1.0) for value in values}
        if len(times) > 1:
            values, times = [self.plain(value) for value in values], {1.0}
        out = self.op(kind, values, label, **attributes)
        self.times[out] = times.pop()
        return out

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
            if type(module) not in OFFSETS:
                x = self.settled(x)
            return rule(self, module, x if type(module) in MULTIPLES else self.plain(x))

    def weight(self, name: str, value: Tensor) -> str:
        """Store a parameter of the present module; ``weight`` as int8 if that was asked for."""
        array: npt.NDArray[np.float32] = value.detach().cpu().numpy()
        place = f"{self.place}.{name}"
        if not (self.int8 and name == "weight"):
            return self.constant(place, array)
        if place not in self._shared:
            levels, scale = as_int8(array, f"{self.path}.{name}")
            inputs = [self.constant(f"{place}.int8", levels), self.scales(f"{place}.scale", scale)]
            axis = {"axis": 0} if scale.ndim else {}
            self.once(
                place,
                lambda: self.op("DequantizeLinear", inputs, "weight", rank=array.ndim, **axis),
            )
        return self._shared[place]

    def once(self, what: str, write: Callable[[], str]) -> str:
        """Return a value that all steps read; ``write`` writes it where ``what`` is asked for the first time."""
        if what not in self._shared:
            step, self.step = self.step, self.shared
            made = write()
            self.step, self._shared[what] = step, made
        return self._shared[what]

    def scales(self, name: str, scale: npt.NDArray[np.float32]) -> str:
        """Store what is multiplied with; a scalar once for all who use it."""
        return self.constant(name, scale) if scale.ndim else self.scalar(float(scale))


def rule(
    *kinds: type[nn.Module], multiples: bool = False, offsets: bool = False
) -> Callable[[Rule], Rule]:
    """Register a rule for modules of exactly these types; ``multiples``: it looks at `StepGraph.times` itself.

    ``offsets``: and at `StepGraph.offsets`.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        if multiples:
            MULTIPLES.update(kinds)
        if offsets:
            OFFSETS.update(kinds)
        return function

    return register
