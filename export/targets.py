"""Where an ONNX file is to run: opset, batch, graphs and operators that are known to work there. No torch, no onnx.

TensorRT's operators are those of onnx-tensorrt's docs/operators.md (8.5: opset up to 17; 10.3: opset 9 to 20); nothing
was run on a Jetson. There Scan is listed as supported, but bodies with convolutions have been reported to fail
(NVIDIA/TensorRT issue 1081), so Jetson targets get the step graph or the unrolled one, both with a fixed batch.
"""

import difflib
from dataclasses import dataclass

from revedge.errors import UsageError

_STEP = frozenset(
    {
        "Add",
        "AveragePool",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "MatMul",
        "MaxPool",
        "Mul",
        "ReduceMean",
        "Reshape",
        "Round",
        "Slice",
        "Split",
        "Sub",
        "Transpose",
    }
)
_SEQUENCE = frozenset(["ConstantOfShape", "Div", "Squeeze", "Unsqueeze"])
_DYNAMIC = frozenset(["Shape"])
_INT8 = frozenset(["DequantizeLinear"])
_SCAN = frozenset(["Scan"])
# One pass over memory for a neuron's spikes, one for its reset. Only where nothing turns float32 into half precision:
# the slope of the line that stands for the threshold is 2**24.
_ONE_PASS = frozenset(["HardSigmoid", "ThresholdedRelu"])

# Products of spikes with 8-bit weights in integers: onnx-tensorrt's documentation has no MatMulInteger.
_INTEGERS = frozenset(["BatchNormalization", "Gather", "MatMulInteger", "Pad"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A place to run.

    Attributes:
        title: what it is.
        opset: default.
        int8_opset: default with weights of 8 bits; None is the same.
        newest_opset: that its runtime reads.
        batch: default; None is a free batch.
        free_batch: whether a free batch works there.
        graphs: of `revedge.export.onnx_graph.GRAPHS`.
        operators: that its runtime has; no file for it uses another.
        functions: whether it takes a function of the file's own for the step that an unrolled graph repeats.
    """

    title: str
    opset: int
    newest_opset: int
    batch: int | None
    free_batch: bool
    graphs: tuple[str, ...]
    operators: frozenset[str]
    functions: bool = False
    int8_opset: int | None = None

    @property
    def int8(self) -> bool:
        """Whether it multiplies weights of 8 bits out."""
        return self.operators >= _INT8


TARGETS = {
    "ort": Target(
        title="onnxruntime 1.18 or newer (opset 22: 1.21 or newer; opset 23: 1.23)",
        opset=18,
        newest_opset=23,
        batch=None,
        free_batch=True,
        graphs=("step", "blocks", "scan", "unrolled"),
        operators=_STEP | _SEQUENCE | _DYNAMIC | _INT8 | _SCAN | _ONE_PASS | _INTEGERS,
        functions=True,
        int8_opset=19,  # before, onnx's own evaluator cannot multiply out a scale per channel
    ),
    "jetpack5": Target(
        title="TensorRT 8.4 to 8.6",
        opset=17,
        newest_opset=17,
        batch=1,
        free_batch=False,
        graphs=("step", "unrolled"),
        operators=_STEP | _SEQUENCE | _INT8,
    ),
    "jetpack6": Target(
        title="TensorRT 10.0 to 10.3",
        opset=18,
        newest_opset=20,
        batch=1,
        free_batch=False,
        graphs=("step", "unrolled"),
        operators=_STEP | _SEQUENCE | _INT8,
        functions=True,  # since 9.0: onnx-tensorrt's docs/Changelog.md
    ),
    "generic": Target(
        title="any runtime with the basic operators of opset 17: no control flow, no quantization",
        opset=17,
        newest_opset=23,
        batch=None,
        free_batch=True,
        graphs=("step", "unrolled"),
        operators=_STEP | _SEQUENCE | _DYNAMIC,
    ),
}


def target_named(name: str) -> Target:
    """Return a target.

    Raises:
        UsageError: none of that name; the closest is named.
    """
    if name not in TARGETS:
        close = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(TARGETS)}"
        raise UsageError(f"target {name!r} is not known; {hint}")
    return TARGETS[name]
