"""What an exported file says about itself: inputs, states, time steps, versions. No torch, no numpy.

The same fields stand in the ``metadata_props`` of an ONNX file (each value a string, lists and objects as JSON) and in
``revedge.json`` inside a TorchScript file. README.md in this folder is their specification; `SCHEMA` is its version.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from revedge.errors import ExportError

SCHEMA = 1
_LARGEST = 2**31 - 1  # of any size in a file
_LONGEST = 1000  # of any name in a file


@dataclass(frozen=True, kw_only=True, slots=True)
class StateEntry:
    """One neuron's state: it goes in as ``name``, comes out as ``next``, and starts from ``init`` everywhere.

    ``shape`` is without the batch; ``path`` is the neuron's place in the trained network.
    """

    name: str
    next: str
    shape: tuple[int, ...]
    init: float
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything that a reader of the file has to know.

    Attributes:
        graph: "step", "blocks", "scan" or "unrolled" (ONNX, see onnx_graph.py), or "stream" (the file keeps the state).
        in_shape: (C, H, W); the input is ``x`` float32 ``[B, C, H, W]``.
        input_scale: what 8-bit frames are multiplied with, 1.0 if values are used as they are.
        static: one image per sample, shown at every step, instead of one frame per step.
        timesteps: T of the training; the prediction is the mean of the logits over T steps.
        num_classes, class_names: of the logits ``[B, num_classes]``.
        states: in the order of the inputs; empty names of a stream file are still listed.
        grid_bits: residual streams are multiples of ``2**-grid_bits``.
        numerics: "float": spikes agree up to rounding near thresholds; "exact": they are equal everywhere.
        certificate: of exact files, see `revedge.export.exact_ranges.Certificate`; empty of others.
        network: SHA-256 over configuration and values of the trained network.
        model: what `revedge.models.create` was called with.
        versions: of revedge, torch, onnx and the exporter.
        opset: of ONNX files, None otherwise.
        batch: what the batch is fixed to, None if it is free.
        steps: what the number of time steps is fixed to, None if it is free; of step graphs always None.
        target: what the file was written for, one of `revedge.export.targets`.
        weights: "float32", or "int8": stored as 8-bit integers times a power of two.
    """

    graph: str
    in_shape: tuple[int, ...]
    input_scale: float
    static: bool
    timesteps: int
    num_classes: int
    class_names: tuple[str, ...]
    states: tuple[StateEntry, ...]
    grid_bits: int
    model: Mapping[str, Any]
    versions: Mapping[str, str]
    network: str = ""
    data: str = ""
    opset: int | None = None
    batch: int | None = None
    steps: int | None = None
    target: str = "ort"
    weights: str = "float32"
    numerics: str = "float"
    certificate: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def takes_time(self) -> bool:
        """Whether ``x`` is ``[T, B, C, H, W]``: several frames at once."""
        return self.graph in ("blocks", "scan", "unrolled") and not self.static

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return {
            "schema": self.schema,
            "graph": self.graph,
            "opset": self.opset,
            "timesteps": self.timesteps,
            "input": {
                "name": "x",
                "dtype": "float32",
                "layout": "T,B,C,H,W" if self.takes_time else "B,C,H,W",
                "shape": list(self.in_shape),
                "scale": self.input_scale,
                "static": self.static,
            },
            "output": {"name": "logits", "dtype": "float32", "readout": "mean over steps"},
            "classes": {"count": self.num_classes, "names": list(self.class_names)},
            "states": [{**dataclasses.asdict(s), "shape": list(s.shape)} for s in self.states],
            "grid_bits": self.grid_bits,
            "batch": self.batch,
            "steps": self.steps,
            "target": self.target,
            "weights": self.weights,
            "numerics": self.numerics,
            "certificate": dict(self.certificate),
            "data": self.data,
            "network": self.network,
            "model": dict(self.model),
            "versions": dict(self.versions),
        }

    def to_strings(self) -> dict[str, str]:
        """Return the fields as ONNX ``metadata_props``: strings stay, everything else is JSON."""
        return {
            key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for key, value in self.to_dict().items()
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], source: str) -> "Manifest":
        """Undo `to_strings`; ``source`` names the file in errors.

        Raises:
            ExportError: not a file of revedge, of another schema, or damaged.
        """
        if "schema" not in strings or "states" not in strings:
            raise ExportError(f"{source} carries no revedge metadata; write it with revedge export")
        plain = {"graph", "numerics", "data", "network", "target", "weights"}
        try:
            return cls.from_dict(
                {k: v if k in plain else json.loads(v) for k, v in strings.items()}, source
            )
        except (ValueError, RecursionError):
            raise _damaged(source) from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> "Manifest":
        """Undo `to_dict`; ``source`` names the file in errors.

        Raises:
            ExportError: of another schema, or damaged.
        """
        require_version("metadata schema", values.get("schema"), SCHEMA, source)
        try:
            return cls(
                graph=_text(values["graph"]),
                in_shape=_sizes(values["input"]["shape"], 3),
                input_scale=_number(values["input"]["scale"]),
                static=_flag(values["input"]["static"]),
                timesteps=_size(values["timesteps"]),
                num_classes=_size(values["classes"]["count"]),
                class_names=tuple(_text(name) for name in values["classes"]["names"]),
                states=tuple(_state(entry) for entry in values["states"]),
                grid_bits=int(values["grid_bits"]),
                model=dict(values["model"]),
                versions={_text(k): _text(v) for k, v in dict(values["versions"]).items()},
                data=_text(values["data"]),
                network=_text(values["network"]),
                opset=_optional(values["opset"]),
                batch=_optional(values["batch"]),
                steps=_optional(values["steps"]),
                target=_text(values["target"]),
                weights=_text(values["weights"]),
                numerics=_text(values["numerics"]),
                certificate=dict(values.get("certificate", {})),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            raise _damaged(source) from None


def require_version(what: str, found: object, known: int, source: str) -> None:
    """Raise unless ``found`` is ``known``, the version of a file's format that this revedge reads and writes.

    Within a version keys may be added, and none changes its meaning; readers refuse every other version.

    Raises:
        ExportError: another one; says whether to update revedge or to export the model again.
    """
    if found == known and isinstance(found, int) and not isinstance(found, bool):
        return
    newer = isinstance(found, int) and found > known
    raise ExportError(
        f"{source} is of {what} {repr(found)[:40]}, this revedge reads {known}; "
        + (
            "update revedge here, or export the model with this one"
            if newer
            else "export the model again"
        )
    )


def _state(entry: Mapping[str, Any]) -> StateEntry:
    return StateEntry(
        name=_text(entry["name"]),
        next=_text(entry["next"]),
        shape=_sizes(entry["shape"]),
        init=_number(entry["init"]),
        path=_text(entry["path"]),
    )


def _sizes(values: Any, count: int | None = None) -> tuple[int, ...]:
    sizes = tuple(_size(value) for value in values)
    if count is not None and len(sizes) != count:
        raise ValueError(f"{len(sizes)} sizes, not {count}")
    return sizes


def _text(value: Any) -> str:
    """Of one line: names are printed, one window or one state a line, on terminals that obey control characters."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST:
        raise ValueError("no text of one line")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise ValueError(f"{value!r} is not a size")
    return value


def _optional(value: Any) -> int | None:
    return None if value is None else _size(value)


def _damaged(source: str) -> ExportError:
    return ExportError(f"the revedge metadata in {source} is damaged; export the model again")
