"""What is asked of the planner: what is given, what is free, and what to make large."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from revedge.errors import UsageError
from revedge.planner.defaults import Defaults, for_data
from revedge.planner.plan import OPTIMIZERS, STRATEGIES, Plan
from revedge.planner.plan_rules import MOST, MOST_BLOCKS_OR_CHANNELS
from revedge.planner.precision import AUTO, PRECISIONS, check_precision
from revedge.planner.setting import Setting
from revedge.planner.way import SLAB_TIME_FACTORS, SPAN_STRATEGIES, SPANS, Way, ways
from revedge.user_code import digest, is_user_model

PREFERENCES = ("depth", "timesteps", "speed", "accuracy-per-byte")
ANY = "any"  # of the optimizers
# SGD takes this many times the learning rate that is set for AdamW.
SGD_RATE_FACTOR = 25.0
code_sha256 = functools.lru_cache(digest)  # cleared where a search begins


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownRun:
    """A training that was finished, and what it reached on the test split; fields are those of `Plan`."""

    model: str
    model_options: Mapping[str, Any]
    timesteps: int
    accuracy: float


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
    model: str | None = None  # a model, a family of models, or where a function of the user's lies
    model_options: Mapping[str, Any] = field(default_factory=dict)
    timesteps: int | None = None
    # Of "depth", "timesteps", "width": least and most, where they are free.
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    # With these data, to choose among with --prefer accuracy-per-byte.
    runs: tuple[KnownRun, ...] = ()
    batch_size: int | None = None
    micro_batch_size: int | None = None
    strategy: str | None = None
    slab_bytes: int | None = None  # 0: no slabs
    span_count: int | None = None  # 0: no spans
    membrane_count: int | None = None  # None: one per span
    chunk_bytes: int | None = None  # None: as the engine has them
    update_in_backward: bool | None = None
    # None: float32; "auto": bfloat16 where that is measured to be faster.
    precision: str | None = None
    optimizer: str | None = None  # None: the data's own; "any": AdamW, or SGD where only that fits
    prefer: str | None = None
    learning_rate: float | None = None
    device: str = "cpu"
    context_bytes: int | None = None  # of CUDA on another board (base.py); None: as measured here
    page_bytes: int | None = None  # of memory where the training will be; None: as here
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the names and the sizes."""
        self._check_numbers()
        if self.prefer is not None and self.prefer not in PREFERENCES:
            raise UsageError(f"--prefer {self.prefer!r} is not known; choose one of {PREFERENCES}")
        if (self.prefer == "accuracy-per-byte") != bool(self.runs):
            raise UsageError(
                "--prefer accuracy-per-byte and --runs go together: accuracies are taken from finished trainings, "
                "as in --runs runs/a runs/b"
            )
        if self.runs and self.ranges:
            raise UsageError("--runs says what to choose among; leave the ranges out")
        for name, (low, high) in self.ranges.items():
            if not 1 <= low <= high:
                raise UsageError(f"--{name} {low}..{high} is no range; give it as 4..16")
            if name in self.model_options or (name == "timesteps" and self.timesteps is not None):
                raise UsageError(f"--{name} is a number and a range; give one")
        if self.strategy is not None and self.strategy not in STRATEGIES:
            raise UsageError(f"strategy {self.strategy!r} is not known; choose one of {STRATEGIES}")
        known = not is_user_model(self.model or "")  # of others, only their code knows
        if self.strategy == "invert" and known and not self._reversible():
            raise UsageError(
                "--strategy invert is of reversible neurons; give --neuron reversible, or --strategy keep-conv, "
                "which it would be without"
            )
        if self.span_count and self.strategy not in (None, *SPAN_STRATEGIES):
            raise UsageError(
                f"--spans {self.span_count}: --strategy {self.strategy} keeps what spans would make again; "
                f"use {' or '.join(SPAN_STRATEGIES)}"
            )
        check_precision(self.precision)
        if self.optimizer not in (None, ANY, *OPTIMIZERS):
            raise UsageError(
                f"optimizer {self.optimizer!r} is not known; choose one of {(*OPTIMIZERS, ANY)}"
            )
        if self.membrane_count is not None and not self.span_count:
            raise UsageError(
                f"--membranes {self.membrane_count} are those of spans of time; give --spans, too, as in --spans 16"
            )
        if self.update_in_backward and self.micro_batch_size not in (None, self.full_batch_size):
            raise UsageError(
                "--update-in-backward does not go with --micro-batch, whose gradients are summed first; leave one out"
            )
        if self.micro_batch_size is not None and self.full_batch_size % self.micro_batch_size:
            raise UsageError(
                f"micro-batch {self.micro_batch_size} does not divide batch {self.full_batch_size}; "
                "give a divisor"
            )

    def _check_numbers(self) -> None:
        """Raise where a number is beyond all sense."""
        given: list[tuple[str, int, int]] = [
            ("timesteps", self.timesteps or 0, MOST["timesteps"]),
            ("batch", self.batch_size or 0, MOST["batch_size"]),
            ("threads", self.threads, MOST["threads"]),
        ]
        for name, (_, high) in self.ranges.items():
            given.append((name, high, MOST.get(name, MOST_BLOCKS_OR_CHANNELS)))
        for name in ("depth", "width"):
            size = self.model_options.get(name)
            if isinstance(size, int):  # of a function of the user's it may be anything
                given.append((name, size, MOST_BLOCKS_OR_CHANNELS))
        for name, value, most in given:
            if value > most:
                raise UsageError(f"--{name} {value} is out of range; give at most {most}")

    @classmethod
    def of(
        cls, wanted: Mapping[str, Any], *, timesteps: int | None = None, **data: Any
    ) -> "Request":
        """Return the request with these plain values, as they come out of JSON.

        Args:
            wanted: fields of a request; ranges and runs as lists and mappings.
            timesteps: that the recordings have, where they have no others.
            data: further fields: what the data set says about itself.

        Raises:
            UsageError: as `Request`, or time steps are asked for that the recordings do not have.
        """
        fields = {**wanted, **data}
        fields["ranges"] = {
            name: (ends[0], ends[1]) for name, ends in wanted.get("ranges", {}).items()
        }
        fields["runs"] = tuple(KnownRun(**each) for each in wanted.get("runs", ()))
        if timesteps is not None:
            if "timesteps" in fields["ranges"]:
                raise UsageError(
                    f"these recordings have {timesteps} time steps and no others; leave --timesteps out"
                )
            fields["timesteps"] = wanted.get("timesteps") or timesteps
        return cls(**fields)

    @property
    def defaults(self) -> Defaults:
        """Settings for this data set where nothing is given."""
        return for_data(self.data)

    @property
    def full_batch_size(self) -> int:
        """Samples per optimizer step."""
        return self.batch_size or self.defaults.batch_size

    def strategies(self) -> list[str]:
        """Return the strategies that may be chosen."""
        if self.strategy is not None:
            return [self.strategy]
        if self.span_count:
            return list(SPAN_STRATEGIES)
        return [name for name in STRATEGIES if name != "invert" or self._reversible()]

    def _reversible(self) -> bool:
        """Whether all networks that may be chosen have reversible neurons."""
        options = [self.model_options, *(each.model_options for each in self.runs)]
        return all(each.get("neuron") == "reversible" for each in options[1:] or options)

    def ways(self, micro_batch: int) -> list[Way]:
        """Return the ways of saving memory that may be chosen, the fastest first."""
        slabs = list(SLAB_TIME_FACTORS) if self.slab_bytes is None else [self.slab_bytes or None]
        whole = micro_batch == self.full_batch_size
        updates = [False, True] if self.update_in_backward is None else [self.update_in_backward]
        found = ways(self.strategies(), slabs, self._spans(), updates)
        return [
            replace(way, membrane_count=self.membrane_count, chunk_bytes=self.chunk_bytes)
            for way in found
            if whole or not way.update_in_backward
        ]

    def _spans(self) -> list[int | None]:
        """Return the numbers of spans that may be chosen: where a trace would be needed, it takes too long for that."""
        if self.span_count is not None:
            return [self.span_count or None]
        models = [self.model or "", *(each.model for each in self.runs)]
        by_formula = (
            self.device == "cpu"
            and self.precision in (None, PRECISIONS[0])
            and not any(map(is_user_model, models))
        )
        return list(SPANS) if by_formula else [None]

    def optimizers(self) -> list[str]:
        """Return the optimizers that may be chosen, the preferred one first."""
        if self.optimizer == ANY:
            return list(OPTIMIZERS)
        return [self.optimizer or self.defaults.optimizer]

    def micro_batches(self) -> list[int]:
        """Return the micro-batch sizes that may be chosen, the largest first: halves, then 1."""
        if self.micro_batch_size is not None:
            return [self.micro_batch_size]
        if self.update_in_backward:
            return [self.full_batch_size]
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
        optimizer: str,
        way: Way,
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
            **asdict(way),
            precision=PRECISIONS[0] if self.precision in (None, AUTO) else self.precision,
            optimizer=optimizer,
            device=self.device,
            threads=self.threads,
            model_sha256=code_sha256(model),
        )

    def plan(self, setting: Setting, parts: Mapping[str, int]) -> Plan:
        """Return the plan for ``setting``, whose prediction has ``parts``."""
        defaults = self.defaults
        rate = defaults.learning_rate * (SGD_RATE_FACTOR if setting.optimizer == "sgd" else 1.0)
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
            slab_bytes=setting.slab_bytes,
            span_count=setting.span_count,
            membrane_count=setting.membrane_count,
            chunk_bytes=setting.chunk_bytes,
            update_in_backward=setting.update_in_backward,
            precision=setting.precision,
            optimizer=setting.optimizer,
            learning_rate=self.learning_rate or rate,
            weight_decay=defaults.weight_decay,
            warmup_steps=defaults.warmup_steps,
            label_smoothing=defaults.label_smoothing,
            augment_shift=defaults.augment_shift,
            device=self.device,
            threads=self.threads,
            model_sha256=setting.model_sha256,
            budget_bytes=self.budget_bytes,
            predicted_peak_bytes=sum(parts.values()),
            parts=dict(parts),
        )
