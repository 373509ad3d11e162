"""What the memory of a training depends on: the part of a plan that a trace is made from."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from revedge.planner.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One configuration, without the settings that change no byte (learning rate, epochs, seed).

    Fields are those of `Plan`.
    """

    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    in_shape: tuple[int, int, int]
    num_classes: int
    static: bool = False
    timesteps: int
    batch_size: int
    micro_batch_size: int
    strategy: str | tuple[str, ...]
    slab_bytes: int | None = None
    span_count: int | None = None
    membrane_count: int | None = None
    chunk_bytes: int | None = None
    update_in_backward: bool = False
    precision: str = "float32"
    optimizer: str = "adamw"
    device: str = "cpu"
    threads: int = 1
    model_sha256: str | None = None  # of the user's code: nothing of an older one is remembered

    @classmethod
    def of(cls, plan: Plan) -> "Setting":
        """Return the setting of ``plan``."""
        return cls(**{each.name: getattr(plan, each.name) for each in dataclasses.fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """Return plain values; equal settings give equal ones."""
        values = dataclasses.asdict(self)
        return {
            **values,
            "in_shape": list(self.in_shape),
            "model_options": dict(self.model_options),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Setting":
        """Return the setting that `to_json` gave ``values`` for."""
        strategy = values["strategy"]
        strategy = tuple(strategy) if isinstance(strategy, list) else strategy
        return cls(**{**values, "in_shape": tuple(values["in_shape"]), "strategy": strategy})

    def key(self) -> str:
        """Return a text that is the same for settings that take the same bytes."""
        values = self.to_json()
        accumulates = self.batch_size > self.micro_batch_size
        values["batch_size"] = self.micro_batch_size * (2 if accumulates else 1)
        return json.dumps(values, sort_keys=True)
