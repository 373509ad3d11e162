"""Random configurations for benchmarks of the planner: seeded lists of trainings that this machine can run.

The list "own" has the models as the registry has them. The list "narrow" has them with 4 to 48 channels and also with
2 to 24 blocks: small trainings, of which a few MiB of error are a large part.
"""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

from revedge.errors import UsageError
from revedge.planner.formulas import Formulas
from revedge.planner.plan import OPTIMIZERS
from revedge.planner.setting import Setting
from revedge.planner.trace_client import TraceClient
from revedge.planner.way import SPAN_STRATEGIES

WIDTHS = ("own", "narrow")
SHAPES = [(2, 16, 16), (1, 28, 28), (3, 32, 32), (2, 34, 34), (2, 48, 48), (2, 64, 64)]
STRATEGIES = ["store", "keep-conv", "keep-spikes", "reverse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a configuration may take at most: multiplications of a step, live bytes."""

    multiplications: float
    live_bytes: int


class Drawn:
    """One list after another of its settings; counts what is thrown away.

    Args:
        seed: of the list.
        widths: one of `WIDTHS`.
        limits: what takes more is drawn again.
        client: tells models, and what a configuration takes.
    """

    def __init__(self, seed: int, widths: str, limits: Limits, client: TraceClient) -> None:
        self._rng = random.Random(seed)
        self._narrow, self._limits = widths == "narrow", limits
        self._client, self._formulas = client, Formulas(client)
        self._families = {name: members for name, members in client.families().items() if members}
        self.beyond_limits = 0  # draws that were thrown away because they take more
        self.impossible = 0  # and because there is no such model

    def next(self) -> Setting:
        """Return the next configuration."""
        while True:
            setting, strategies = self._any()
            mixed = self._rng.random() < 0.2
            try:
                if mixed:
                    runs = self._formulas.trace(setting)["runs"]
                    names = tuple(self._rng.choice(strategies) for _ in range(runs))
                    setting = dataclasses.replace(setting, strategy=names)
                if self._fits(setting):
                    return setting
                self.beyond_limits += 1
            except UsageError:
                self.impossible += 1

    def _any(self) -> tuple[Setting, list[str]]:
        """Return a configuration that may be too large, or not exist, and the strategies that it can have."""
        rng = self._rng
        family = rng.choice(sorted(self._families))
        model = rng.choice(self._families[family])
        options: dict[str, Any] = {}
        if self._narrow:
            options["width"] = rng.choice([4, 8, 16, 24, 32, 48])
        neuron = rng.choice(["if", "lif", "plif", "reversible"])
        if neuron != "reversible" or family == "vgg":
            options["neuron"] = neuron
        if self._narrow and rng.random() < 0.4 and family != "vgg":
            options["depth"] = rng.randint(2, 24)
        batch = rng.choice([1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64])
        micro = batch
        if rng.random() < 0.25:
            micro = rng.choice([n for n in range(1, batch + 1) if batch % n == 0])
        strategies = STRATEGIES + (["invert"] if neuron == "reversible" else [])
        setting = Setting(
            model=model,
            model_options=options,
            in_shape=rng.choice(SHAPES),
            num_classes=10,
            static=rng.random() < 0.3,
            timesteps=rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]),
            batch_size=batch,
            micro_batch_size=micro,
            strategy=rng.choice(strategies),
            slab_bytes=rng.choice([None, None, 32 << 20, 8 << 20, 2 << 20]),
            update_in_backward=micro == batch and rng.random() < 0.4,
            optimizer=rng.choice(OPTIMIZERS),
        )
        return (setting if self._narrow else self._with_spans(setting)), strategies

    def _with_spans(self, setting: Setting) -> Setting:
        """Return it with spans of time where they change something, with few membranes and chunks of another size."""
        rng, spans, membranes = self._rng, None, None
        if setting.strategy in SPAN_STRATEGIES and rng.random() < 0.4:
            spans = rng.choice([2, 4, 8, 16])
            membranes = rng.choice([None, None, 1, 2, 4])
        chunks = rng.choice([None, None, None, 256 << 10, 1 << 20, 8 << 20])
        return dataclasses.replace(
            setting, span_count=spans, membrane_count=membranes, chunk_bytes=chunks
        )

    def _fits(self, setting: Setting) -> bool:
        """Return whether it is within the limits; by formulas where they say no."""
        rounds = setting.batch_size // setting.micro_batch_size
        by_run = self._formulas.by_run(setting)
        # A backward pass has more multiplications than its forward pass, so this is the least of a step.
        forward = 0 if by_run is None else sum(by_run.multiplications)
        if 2 * forward * rounds > self._limits.multiplications:
            return False
        if self._formulas.trace(setting)["peak_bytes"] > self._limits.live_bytes:
            return False
        traced = self._client.trace(setting)
        work = traced["multiplications"] * rounds
        return work <= self._limits.multiplications and (
            traced["peak_bytes"] <= self._limits.live_bytes
        )
