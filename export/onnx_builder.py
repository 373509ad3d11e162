"""One ONNX graph under construction: nodes, shared constants, names. onnx_step.py and onnx_rules.py fill it.

All that an opset decides stands in the two tables here; every other operator in use means the same from 13 to 23.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

# opset -> version of the file format, the lowest that may carry it: older readers go by this number, too.
IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
# operator -> opset from which its axes are an input, and no longer an attribute
AXES_ARE_INPUT = {"ReduceMean": 18}
# Parts of a module's path as they stand in names: spelled out they were a tenth of a small file with 8-bit weights.
_SHORT = {"runs.": "r", "branches.": "b", "units.": "u", "others.": "o", "forks.": "f"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZghijklmnopqrstuvwyz"  # without those of numbers, and x
OPSETS = range(min(IR_VERSIONS), max(IR_VERSIONS) + 1)


class Graph:
    """Nodes in order of execution and the constants they read.

    Values are named ``<step><place>/<label>``: ``step`` says which time step or body they are of, ``place`` is the
    module they come from. Constants carry no step, so all steps share them.

    Args:
        opset: one of `OPSETS`.
        home: prefix of constants; a graph around another one must not use the other's names.
        short: number values and constants instead of naming them by their place: for graphs that repeat a step, where
            names would be most of the file.

    Attributes:
        nodes: in order.
        constants: name -> tensor.
        functions: of the file's own, that its nodes call.
        step: prefix of all values from now on.
        shared: prefix of values that all steps read.
        ranks: value -> number of dimensions, the batch included.
    """

    def __init__(self, opset: int, home: str = "", *, short: bool = False) -> None:
        self.opset = opset
        self.home = home
        self.short = short
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.functions: list[onnx.FunctionProto] = []
        self.step = ""
        self.shared = ""
        self.ranks: dict[str, int] = {}
        self._path: list[str] = []
        self._used: set[str] = set()
        self._numbers: dict[str, int] = {}  # prefix -> how many values it has
        self._short_names: dict[str, str] = {}  # of constants; no hexadecimal number

    @property
    def path(self) -> str:
        """Where in the network the next node comes from."""
        return ".".join(self._path)

    @property
    def place(self) -> str:
        """`path` for names: ``r1.b0.u2.tail`` is ``runs.1.branches.0.units.2.tail``."""
        return ".".join(map(_shortened, self._path))

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Nodes made inside come from the part ``name`` of the present module."""
        self._path.append(name)
        yield
        self._path.pop()

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        label: str = "",
        *,
        rank: int | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node with one output and return that output's name.

        Args:
            kind: operator, of the default domain.
            inputs: names of values and constants; the first one gives the rank of the output.
            label: last part of the output's name; default: the operator.
            rank: of the output, where it is another one.
            attributes: of the operator.
        """
        from onnx import helper

        output = self.name(label or kind.lower())
        # No name of its own: its output has one, and names are a tenth of a small file with 8-bit weights.
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        self.ranks[output] = self.ranks[inputs[0]] if rank is None else rank
        return output

    def name(self, label: str) -> str:
        """Return a name that no other value has."""
        if self.short and self.step:
            self._numbers[self.step] = number = self._numbers.get(self.step, 0) + 1
            return f"{self.step}{number:x}"
        if self.short and self._path:  # read by every step, as a constant is
            return self._letters_of(f"{self.path}/{label}/{len(self._short_names)}")
        base = f"{self.step}{self.place}/{label}" if self._path else f"{self.step}{label}"
        name, count = base, 1
        while name in self._used:
            count += 1
            name = f"{base}_{count}"
        self._used.add(name)
        return name

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Store a constant under ``name``, once for all steps, and return the name."""
        from onnx import numpy_helper

        name = self._letters_of(name) if self.short else self.home + name
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        self.ranks[name] = value.ndim
        return name

    def _letters_of(self, name: str) -> str:
        return self.home + self._short_names.setdefault(name, _letters(len(self._short_names)))

    def scalar(self, value: float) -> str:
        """Return the name of a float32 scalar."""
        return self.constant(f"scalar/{np.float32(value)!s}", np.array(value, np.float32))

    def sizes(self, *values: int) -> str:
        """Return the name of an int64 vector."""
        name = f"sizes/{'_'.join(map(str, values))}"
        return self.constant(name, np.array(values, np.int64))

    def narrow(self, x: str, dim: int, start: int, length: int) -> str:
        """``x[start : start + length]`` along ``dim``."""
        bounds = [self.sizes(start), self.sizes(start + length), self.sizes(dim)]
        return self.op("Slice", [x, *bounds])

    def split(self, x: str, dim: int, *lengths: int, label: str = "part") -> list[str]:
        """Cut ``x`` along ``dim`` into parts that follow each other.

        Several Gather nodes on one value would do the same, but onnxruntime 1.18 joins them into Split itself, gives
        two such nodes one name, and then refuses the file.
        """
        from onnx import helper

        parts = [self.name(f"{label}_{index}") for index in range(len(lengths))]
        inputs = [x, self.sizes(*lengths)]
        self.nodes.append(helper.make_node("Split", inputs, parts, axis=dim))
        self.ranks.update(dict.fromkeys(parts, self.ranks[x]))
        return parts

    def reduce(self, kind: str, x: str, axis: int) -> str:
        """A sum, mean or the like over ``axis``, which disappears."""
        rank = self.ranks[x] - 1
        if self.opset >= AXES_ARE_INPUT[kind]:
            return self.op(kind, [x, self.sizes(axis)], rank=rank, keepdims=0)
        return self.op(kind, [x], rank=rank, axes=[axis], keepdims=0)

    def drop_unread(self, wanted: Sequence[str], since: int = 0) -> None:
        """Leave out nodes, of those from the one numbered ``since`` on, that nothing ``wanted`` comes of."""
        read, kept = set(wanted), []
        for node in reversed(self.nodes[since:]):
            if read & set(node.output):
                kept.append(node)
                read |= set(node.input)
        self.nodes[since:] = kept[::-1]

    def rename(self, names: dict[str, str], since: int = 0) -> None:
        """Give values other names, in all nodes from the one numbered ``since`` on."""
        for node in self.nodes[since:]:
            for field in (node.input, node.output):
                for position, name in enumerate(field):
                    if name in names:
                        field[position] = names[name]
        for old, new in names.items():
            self.ranks[new] = self.ranks.pop(old)


def _letters(number: int) -> str:
    """The shortest names that are no hexadecimal numbers: every call of an unrolled step names all weights."""
    more, last = divmod(number, len(_LETTERS))
    return (_letters(more - 1) if more else "") + _LETTERS[last]


def _shortened(part: str) -> str:
    for long, short in _SHORT.items():
        part = part.replace(long, short)
    return part
