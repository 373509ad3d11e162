"""Families of networks that are not there, whose memory is a formula of a line: what a search is tested with."""

from revedge.errors import UsageError
from revedge.planner.cost import Prediction
from revedge.planner.request import Request
from revedge.planner.setting import Setting

FAMILIES = {"net": ["net5", "net9", "net21"], "odd": ["odd3", "odd7"]}
_SLAB = {None: 3, 32 << 20: 3, 8 << 20: 2, 2 << 20: 1}
KEPT = {"store": 9, "keep-conv": 5, "keep-spikes": 2, "reverse": 1}
# A deeper member may take less memory than a shallower one (fewer channels), as in real families.
_MEMBER = {"net5": 5, "net9": 9, "net21": 7, "odd3": 4, "odd7": 2}


def predictor(slopes: tuple[int, int, int]):  # type: ignore[no-untyped-def]
    """Memory that grows with depth, T, micro-batch and what the strategy keeps."""
    per_depth, per_step, fixed = slopes

    def predict(setting: Setting) -> Prediction:
        depth = setting.model_options.get("depth", _MEMBER[setting.model])
        if "depth" in setting.model_options and depth < 2:
            raise UsageError(f"depth {depth} is too small; use 2 or more")
        kept = KEPT[str(setting.strategy)] * depth * per_depth + 3 * setting.timesteps * per_step
        # Slabs help some strategies and hurt others, as they do.
        slab = _SLAB[setting.slab_bytes]
        beside = (slab if setting.strategy != "keep-conv" else 4 - slab) * setting.timesteps
        if setting.span_count is not None and setting.strategy in ("keep-spikes", "reverse"):
            beside //= 2
        state = (2 if setting.optimizer == "adamw" else 1) + (not setting.update_in_backward)
        return Prediction(
            parts={
                "base_bytes": fixed,
                "activations_bytes": (kept + beside) * setting.micro_batch_size,
                "optimizer_bytes": state * depth,
            }
        )

    return predict


def request(budget: int, **changes: object) -> Request:
    values: dict[str, object] = {
        "data": "random",
        "in_shape": (2, 8, 8),
        "num_classes": 4,
        "model": "net9",
        "batch_size": 8,
    }
    return Request(budget_bytes=budget, **{**values, **changes})  # type: ignore[arg-type]
