"""The plan: one training, fully decided, as a value and as a small versioned TOML file (planner/README.md).

A plan says what is trained, how, and how many bytes that was predicted to take. It holds nothing that changes while
training runs and no seed: two trainings of one plan differ by the seed they are given only. plan_rules.py has what its
values may be.
"""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from revedge.errors import PlanFormatError, UsageError
from revedge.planner import plan_rules, toml_text
from revedge.planner.plan_rules import DEVICES as DEVICES
from revedge.planner.plan_rules import FLOATS
from revedge.planner.plan_rules import OPTIMIZERS as OPTIMIZERS
from revedge.planner.plan_rules import STRATEGIES as STRATEGIES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERSION = 1
_LARGEST_FILE_BYTES = 1 << 20
# Keys that are absent from the file where they have these values.
_ABSENT = {
    **dict.fromkeys(("data_dir", "epochs", "model_sha256")),
    **dict.fromkeys(("slab_bytes", "span_count", "membrane_count", "chunk_bytes")),
    "update_in_backward": False,
    "precision": "float32",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One training: network, data, settings, and the bytes it was predicted to take.

    Raises:
        PlanFormatError: a value is out of its range.
    """

    # Name in revedge.models, or where a function of the user's lies (revedge/user_code.py).
    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict)  # of revedge.models.create
    data: str  # name of a data set, or "random" where only its shape is known
    data_dir: str | None = None  # where its files are; None where it needs none
    in_shape: tuple[int, int, int]  # channels, height, width
    num_classes: int
    static: bool = False  # True: one image per sample, False: one frame per time step
    timesteps: int
    batch_size: int  # samples per optimizer step
    micro_batch_size: int  # samples per forward and backward; fewer: gradients are accumulated
    strategy: str | tuple[str, ...] = "reverse"  # of all runs, or one per run, in order
    slab_bytes: int | None = None  # of slabs that tensors between units are made in; None: whole
    span_count: int | None = None  # of time, that blocks go backward in; None: all time at once
    membrane_count: int | None = None  # of a neuron, at most, between spans; None: one per span
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
    # Name ending in _bytes -> share of the prediction, which is their sum.
    parts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field."""
        plan_rules.check(self)

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
        for name in FLOATS:
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
