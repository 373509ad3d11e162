"""The plan: one training, fully decided, as a value and as a small versioned TOML file
(planner/README.md).

A plan says what is trained, how, and how many bytes that was predicted to take. It holds nothing
that changes while training runs and no seed: two trainings of one plan differ by the seed they are
given only.
"""

import dataclasses
import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from revedge.errors import PlanFormatError, UsageError
from revedge.planner import toml_text
from revedge.planner.precision import PRECISIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERSION = 1
STRATEGIES = ("store", "keep-conv", "keep-spikes", "reverse", "invert")  # cheapest in time first
OPTIMIZERS = ("adamw", "sgd")
DEVICES = ("cpu", "cuda")
_LARGEST_FILE_BYTES = 1 << 20
_PART_NAME = re.compile(r"[a-z][a-z0-9_]*_bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One training: network, data, settings, and the bytes it was predicted to take.

    Raises:
        PlanFormatError: a value is out of its range.
    """

    model: (
        str  # name in revedge.models, or where a function of the user's lies (revedge/user_code.py)
    )
    model_options: Mapping[str, Any] = field(
        default_factory=dict
    )  # further arguments of revedge.models.create
    data: str  # name of a data set, or "random" where only its shape is known
    data_dir: str | None = None  # where its files are; None where it needs none
    in_shape: tuple[int, int, int]  # channels, height, width
    num_classes: int
    static: bool = False  # True: one image per sample, False: one frame per time step
    timesteps: int
    batch_size: int  # samples per optimizer step
    micro_batch_size: (
        int  # samples per forward and backward; batch_size unless gradients are accumulated
    )
    strategy: str | tuple[str, ...] = "reverse"  # of all runs, or one per run, in order
    slab_bytes: int | None = (
        None  # size of the slabs that tensors between units are made in; None: whole
    )
    span_count: int | None = (
        None  # spans of time that blocks go backward in; None: over all time at once
    )
    membrane_count: int | None = (
        None  # membranes of a neuron that stand at most between spans; None: one per span
    )
    chunk_bytes: int | None = None  # of spikes that an operator reads at once; None: 2 MiB
    update_in_backward: bool = False  # update each unit's weights, and free its gradient, at once
    precision: str = "float32"  # that convolutions and linear layers are trained in
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 0  # optimizer steps in which the learning rate rises from 0
    label_smoothing: float = 0.0
    augment_shift: int = 0  # training frames are moved by up to this many pixels each way
    epochs: int | None = None  # None: the command line says
    device: str = "cpu"
    threads: int = 1
    model_sha256: str | None = None  # of the user's code that was planned for, where it can be read
    budget_bytes: int
    predicted_peak_bytes: int
    parts: Mapping[str, int] = field(
        default_factory=dict
    )  # name ending in _bytes -> share of the prediction, which is their sum

    def __post_init__(self) -> None:
        """Check every field."""
        for name, allowed in _KINDS.items():
            _check_kind(name, getattr(self, name), allowed)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise PlanFormatError(
                    f"plan: {name} = {value!r} is out of range; give {least} or more"
                )
        for name, names in (
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
            ("device", DEVICES),
        ):
            if getattr(self, name) not in names:
                raise PlanFormatError(
                    f"plan: {name} = {getattr(self, name)!r} is not known; give one of {names}"
                )
        strategies = (self.strategy,) if isinstance(self.strategy, str) else self.strategy
        if not strategies or not all(name in STRATEGIES for name in strategies):
            raise PlanFormatError(
                f"plan: strategy = {self.strategy!r} is not known; give one of {STRATEGIES}, or a list of them "
                "with one for each run"
            )
        if self.membrane_count is not None and self.span_count is None:
            raise PlanFormatError(
                f"plan: membrane_count = {self.membrane_count} is of spans of time; give span_count, too"
            )
        if self.update_in_backward and self.micro_batch_size != self.batch_size:
            raise PlanFormatError(
                "plan: update_in_backward = true does not go with micro-batches, whose gradients are summed first; "
                "set it to false, or micro_batch_size to batch_size"
            )
        if len(self.in_shape) != 3 or not all(type(n) is int and n >= 1 for n in self.in_shape):
            raise PlanFormatError(
                f"plan: in_shape = {self.in_shape!r} is not (channels, height, width)"
            )
        if self.batch_size % self.micro_batch_size:
            raise PlanFormatError(
                f"plan: micro_batch_size = {self.micro_batch_size} does not divide "
                f"batch_size = {self.batch_size}; give a divisor"
            )
        if not self.label_smoothing < 1:
            raise PlanFormatError(
                f"plan: label_smoothing = {self.label_smoothing} is out of range; give [0, 1)"
            )
        _check_tables(self.model_options, self.parts)
        if sum(self.parts.values()) != self.predicted_peak_bytes:
            raise PlanFormatError(
                f"plan: the parts sum to {sum(self.parts.values())} bytes, predicted_peak_bytes "
                f"= {self.predicted_peak_bytes}; the file was edited or damaged: make it again with "
                "revedge plan"
            )

    def to_toml(self) -> str:
        """Return the text of the plan's file; `from_toml` of it equals this plan.

        Raises:
            PlanFormatError: a name holds characters that no text file can hold.
        """
        values = dataclasses.asdict(self)
        tables = {name: values.pop(name) for name in ("model_options", "parts")}
        scalars = {
            "version": VERSION,
            **{name: value for name, value in values.items() if value != _ABSENT.get(name)},
        }
        return toml_text.dump(
            scalars, tables, comment="revedge plan; format: revedge/planner/README.md"
        )

    @classmethod
    def from_toml(cls, text: str) -> "Plan":
        """Return the plan that ``text`` holds.

        Raises:
            PlanFormatError: not TOML, another version, a key missing or unknown, a value of the
            wrong kind or range.
        """
        try:
            values = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise PlanFormatError(
                f"plan: the file is damaged or no plan ({error}); make it again with revedge plan"
            ) from None
        version = values.pop("version", None)
        if type(version) is not int or version != VERSION:
            raise PlanFormatError(
                f"plan: version = {version!r}, but this revedge reads version {VERSION}; make the "
                "plan again with revedge plan, or use the revedge that wrote it"
            )
        known = {each.name: each for each in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(known))
        missing = sorted(set(known) - set(values) - set(_ABSENT))
        if unknown or missing:
            what = ", ".join(
                [f"unknown key {name!r}" for name in unknown] + [f"no {name!r}" for name in missing]
            )
            raise PlanFormatError(f"plan: {what}; make the plan again with revedge plan")
        for name in ("in_shape", "strategy"):
            if isinstance(values[name], list):
                values[name] = tuple(values[name])
        for name in _FLOATS:
            if type(values[name]) is int:
                values[name] = float(values[name])  # `0` is written by hand where 0.0 is meant
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to ``path``; a reader sees the old file or the new one, never a part."""
        text = self.to_toml()
        handle, name = tempfile.mkstemp(
            dir=Path(path).resolve().parent, prefix=".plan-", suffix=".tmp"
        )
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Return the plan in the file ``path``.

        Raises:
            UsageError: there is no such file.
            PlanFormatError: as `from_toml`.
        """
        try:
            with open(path, "rb") as file:
                raw = file.read(_LARGEST_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise UsageError(
                f"{path}: no such plan file; write one with revedge plan --out {path}"
            ) from None
        if len(raw) > _LARGEST_FILE_BYTES:
            raise PlanFormatError(
                f"{path}: larger than 1 MiB, so it is no plan; make one with revedge plan"
            )
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise PlanFormatError(
                f"{path}: not a text file, so it is no plan; make one with revedge plan"
            ) from None
        try:
            return cls.from_toml(text)
        except PlanFormatError as error:
            raise PlanFormatError(f"{path}: {error}") from None


# Keys that are absent from the file where they have these values.
_ABSENT = {
    **dict.fromkeys(
        (
            *("data_dir", "epochs", "slab_bytes", "span_count", "membrane_count", "chunk_bytes"),
            "model_sha256",
        )
    ),
    "update_in_backward": False,
    "precision": "float32",
}
_FLOATS = ("learning_rate", "weight_decay", "label_smoothing")
_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "data", "optimizer", "precision", "device"), (str,)),
    **dict.fromkeys(
        ("num_classes", "timesteps", "batch_size", "micro_batch_size", "warmup_steps"), (int,)
    ),
    **dict.fromkeys(("augment_shift", "threads", "budget_bytes", "predicted_peak_bytes"), (int,)),
    **dict.fromkeys(_FLOATS, (float, int)),
    **dict.fromkeys(("data_dir", "model_sha256"), (str, _NONE)),
    "strategy": (str, tuple),
    **dict.fromkeys(
        ("epochs", "slab_bytes", "span_count", "membrane_count", "chunk_bytes"), (int, _NONE)
    ),
    **dict.fromkeys(("static", "update_in_backward"), (bool,)),
    "in_shape": (tuple,),
    **dict.fromkeys(("model_options", "parts"), (dict,)),
}
_LEAST = {
    **dict.fromkeys(("num_classes", "timesteps", "batch_size", "micro_batch_size", "threads"), 1),
    **dict.fromkeys(
        ("budget_bytes", "slab_bytes", "span_count", "membrane_count", "chunk_bytes"), 1
    ),
    **dict.fromkeys(("predicted_peak_bytes", "warmup_steps", "augment_shift", "epochs"), 0),
    **dict.fromkeys(_FLOATS, 0),
}


def _check_kind(name: str, value: object, allowed: tuple[type, ...]) -> None:
    """Raise unless ``value`` is of exactly one of the ``allowed`` types (True is no number)."""
    if type(value) not in allowed:
        names = " or ".join(kind.__name__ for kind in allowed if kind is not _NONE)
        raise PlanFormatError(f"plan: {name} = {value!r} is {type(value).__name__}; give {names}")
    if isinstance(value, float) and not math.isfinite(value):
        raise PlanFormatError(f"plan: {name} = {value!r} is not a finite number")
    if value == "" or (isinstance(value, int) and abs(value) >= 2**63):
        raise PlanFormatError(f"plan: {name} = {value!r} is empty or out of range")


def _check_tables(options: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Raise unless options are names with plain values, and parts are numbers of bytes."""
    for name, value in options.items():
        items = value if isinstance(value, list | tuple) else [value]
        if not name.isidentifier() or not all(
            type(item) in (int, float, str, bool) for item in items
        ):
            raise PlanFormatError(
                f"plan: model option {name!r} = {value!r} is not a name with a plain value"
            )
    for name, value in parts.items():
        if not _PART_NAME.fullmatch(name) or type(value) is not int or value < 0:
            raise PlanFormatError(
                f"plan: part {name!r} = {value!r} is not a number of bytes named ..._bytes"
            )
