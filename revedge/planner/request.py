"""What is asked of the planner: what is given, what is free, and what to make large."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from revedge.errors import UsageError
from revedge.planner.defaults import Defaults, for_data
from revedge.planner.plan import STRATEGIES, Plan
from revedge.planner.setting import Setting

PREFERENCES = ("depth", "timesteps", "speed")
# Time of a training step in sizes of that of `store`: what is computed again in the backward pass.
# Only the order matters to the search.
TIME_FACTORS: Mapping[str, float] = {
    "store": 1.0,
    "keep-conv": 1.1,
    "invert": 1.2,
    "keep-spikes": 1.35,
    "reverse": 1.4,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A search; None means that the planner chooses.

    Raises:
        UsageError: a value that does not exist.
    """

    budget_bytes: int
    data: str
    data_dir: str | None = None
    in_shape: tuple[int, int, int]
    num_classes: int
    static: bool = False
    model: str | None = None  # a model, or a family of models
    model_options: Mapping[str, Any] = field(default_factory=dict)
    timesteps: int | None = None
    batch_size: int | None = None
    micro_batch_size: int | None = None
    strategy: str | None = None
    prefer: str | None = None
    learning_rate: float | None = None
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the names and the sizes."""
        if self.prefer is not None and self.prefer not in PREFERENCES:
            raise UsageError(f"--prefer {self.prefer!r} is not known; choose one of {PREFERENCES}")
        if self.strategy is not None and self.strategy not in STRATEGIES:
            raise UsageError(f"strategy {self.strategy!r} is not known; choose one of {STRATEGIES}")
        if self.micro_batch_size is not None and self.full_batch_size % self.micro_batch_size:
            raise UsageError(
                f"micro-batch {self.micro_batch_size} does not divide batch {self.full_batch_size}; "
                "give a divisor"
            )

    @property
    def defaults(self) -> Defaults:
        """Settings for this data set where nothing is given."""
        return for_data(self.data)

    @property
    def full_batch_size(self) -> int:
        """Samples per optimizer step."""
        return self.batch_size or self.defaults.batch_size

    def strategies(self) -> list[str]:
        """Return the strategies that may be chosen, the fastest first."""
        if self.strategy is not None:
            return [self.strategy]
        reversible = self.model_options.get("neuron") == "reversible"
        found = [name for name in STRATEGIES if name != "invert" or reversible]
        return sorted(found, key=TIME_FACTORS.__getitem__)

    def micro_batches(self) -> list[int]:
        """Return the micro-batch sizes that may be chosen, the largest first: halves, then 1."""
        if self.micro_batch_size is not None:
            return [self.micro_batch_size]
        sizes = [self.full_batch_size]
        while sizes[-1] % 2 == 0:
            sizes.append(sizes[-1] // 2)
        return sizes if sizes[-1] == 1 else [*sizes, 1]

    def setting(
        self,
        model: str,
        options: Mapping[str, Any],
        timesteps: int,
        micro_batch: int,
        strategy: str,
    ) -> Setting:
        """Return the configuration with these values for what is free."""
        return Setting(
            model=model,
            model_options={**self.model_options, **options},
            in_shape=self.in_shape,
            num_classes=self.num_classes,
            static=self.static,
            timesteps=timesteps,
            batch_size=self.full_batch_size,
            micro_batch_size=micro_batch,
            strategy=strategy,
            optimizer=self.defaults.optimizer,
            device=self.device,
            threads=self.threads,
        )

    def plan(self, setting: Setting, parts: Mapping[str, int]) -> Plan:
        """Return the plan for ``setting``, whose prediction has ``parts``."""
        defaults = self.defaults
        return Plan(
            model=setting.model,
            model_options=dict(setting.model_options),
            data=self.data,
            data_dir=self.data_dir,
            in_shape=self.in_shape,
            num_classes=self.num_classes,
            static=self.static,
            timesteps=setting.timesteps,
            batch_size=setting.batch_size,
            micro_batch_size=setting.micro_batch_size,
            strategy=setting.strategy,
            optimizer=setting.optimizer,
            learning_rate=self.learning_rate or defaults.learning_rate,
            weight_decay=defaults.weight_decay,
            warmup_steps=defaults.warmup_steps,
            label_smoothing=defaults.label_smoothing,
            augment_shift=defaults.augment_shift,
            device=self.device,
            threads=self.threads,
            budget_bytes=self.budget_bytes,
            predicted_peak_bytes=sum(parts.values()),
            parts=dict(parts),
        )
