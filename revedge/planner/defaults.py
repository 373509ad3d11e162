"""What is trained where the user does not say: a model and its training settings for each data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """Settings that train well on one data set; fields are those of `revedge.planner.plan.Plan`."""

    model: str
    timesteps: int = 8
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    label_smoothing: float = 0.0
    augment_shift: int = 0


_OTHER = Defaults(model="revsresnet11")
_KNOWN: Mapping[str, Defaults] = MappingProxyType(
    {
        "digits": Defaults(
            model="revsresnet11", learning_rate=4e-3, label_smoothing=0.05, augment_shift=1
        ),
        "nmnist": Defaults(
            model="revsresnet16",
            timesteps=6,
            batch_size=16,
            learning_rate=4e-3,
            label_smoothing=0.05,
            augment_shift=1,
        ),
        "dvsgesture": Defaults(
            model="revsresnet24", timesteps=16, batch_size=16, label_smoothing=0.1, augment_shift=8
        ),
    }
)


def for_data(name: str) -> Defaults:
    """Return the settings for the data set called ``name``; general ones where it has none."""
    return _KNOWN.get(name, _OTHER)
