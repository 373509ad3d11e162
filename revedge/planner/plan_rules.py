"""What the values of a plan may be: kinds, ranges, and what goes together."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from revedge.errors import PlanFormatError
from revedge.planner.precision import PRECISIONS
from revedge.user_code import is_user_model

if TYPE_CHECKING:
    from revedge.planner.plan import Plan

STRATEGIES = ("store", "keep-conv", "keep-spikes", "reverse", "invert")  # cheapest in time first
OPTIMIZERS = ("adamw", "sgd")
DEVICES = ("cpu", "cuda")
# Far more than anybody trains; a search through such numbers still ends.
MOST = {
    "timesteps": 100_000,
    "batch_size": 1_000_000,
    "num_classes": 1_000_000,
    "threads": 1024,
    "augment_shift": 10_000,
}
MOST_BLOCKS_OR_CHANNELS = 10_000
_SIZES = ("depth", "width")  # of a network, among its options
# Arguments of revedge.models.create that are options: of our own models all that there are.
_MODEL_OPTIONS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("depth", "width", "heads"), (int,)),
    **dict.fromkeys(("neuron", "surrogate"), (str,)),
    "tau": (float, int),
}
_NO_OPTIONS = ("name", "in_shape", "num_classes", "timesteps", "static", "strategy")
_PART_NAME = re.compile(r"[a-z][a-z0-9_]*_bytes")
FLOATS = ("learning_rate", "weight_decay", "label_smoothing")
_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "data", "optimizer", "precision", "device"), (str,)),
    **dict.fromkeys(
        ("num_classes", "timesteps", "batch_size", "micro_batch_size", "warmup_steps"), (int,)
    ),
    **dict.fromkeys(("augment_shift", "threads", "budget_bytes", "predicted_peak_bytes"), (int,)),
    **dict.fromkeys(FLOATS, (float, int)),
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
    **dict.fromkeys(FLOATS, 0),
}


def check(plan: "Plan") -> None:
    """Raise unless every field of ``plan`` is of its kind, in its range, and goes with the others.

    Raises:
        PlanFormatError: the first that is not; says which, its value, and what to give.
    """
    _check_each(plan)
    _check_together(plan)


def _check_each(plan: "Plan") -> None:
    for name, allowed in _KINDS.items():
        _check_kind(name, getattr(plan, name), allowed)
    for name, least in _LEAST.items():
        value = getattr(plan, name)
        if value is not None and not value >= least:
            raise PlanFormatError(f"plan: {name} = {value!r} is out of range; give {least} or more")
    for name, most in MOST.items():
        if getattr(plan, name) > most:
            raise PlanFormatError(
                f"plan: {name} = {getattr(plan, name)} is out of range; give at most {most}"
            )
    for name, names in (
        ("optimizer", OPTIMIZERS),
        ("precision", PRECISIONS),
        ("device", DEVICES),
    ):
        if getattr(plan, name) not in names:
            raise PlanFormatError(
                f"plan: {name} = {getattr(plan, name)!r} is not known; give one of {names}"
            )
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in plan.model):
        raise PlanFormatError(
            f"plan: model = {plan.model!r} has control characters; give the name of a model"
        )
    strategies = (plan.strategy,) if isinstance(plan.strategy, str) else plan.strategy
    if not strategies or not all(name in STRATEGIES for name in strategies):
        raise PlanFormatError(
            f"plan: strategy = {plan.strategy!r} is not known; give one of {STRATEGIES}, or a list of them "
            "with one for each run"
        )
    if len(plan.in_shape) != 3 or not all(type(n) is int and n >= 1 for n in plan.in_shape):
        raise PlanFormatError(
            f"plan: in_shape = {plan.in_shape!r} is not (channels, height, width)"
        )
    if not plan.label_smoothing < 1:
        raise PlanFormatError(
            f"plan: label_smoothing = {plan.label_smoothing} is out of range; give [0, 1)"
        )


def _check_together(plan: "Plan") -> None:
    if plan.membrane_count is not None and plan.span_count is None:
        raise PlanFormatError(
            f"plan: membrane_count = {plan.membrane_count} is of spans of time; give span_count, too"
        )
    if plan.update_in_backward and plan.micro_batch_size != plan.batch_size:
        raise PlanFormatError(
            "plan: update_in_backward = true does not go with micro-batches, whose gradients are summed first; "
            "set it to false, or micro_batch_size to batch_size"
        )
    if plan.batch_size % plan.micro_batch_size:
        raise PlanFormatError(
            f"plan: micro_batch_size = {plan.micro_batch_size} does not divide "
            f"batch_size = {plan.batch_size}; give a divisor"
        )
    _check_options(plan.model, plan.model_options)
    _check_parts(plan.parts)
    if sum(plan.parts.values()) != plan.predicted_peak_bytes:
        raise PlanFormatError(
            f"plan: the parts sum to {sum(plan.parts.values())} bytes, predicted_peak_bytes "
            f"= {plan.predicted_peak_bytes}; the file was edited or damaged: make it again with "
            "revedge plan"
        )


def _check_kind(name: str, value: object, allowed: tuple[type, ...]) -> None:
    """Raise unless ``value`` is of exactly one of the ``allowed`` types (True is no number)."""
    if type(value) not in allowed:
        names = " or ".join(kind.__name__ for kind in allowed if kind is not _NONE)
        raise PlanFormatError(f"plan: {name} = {value!r} is {type(value).__name__}; give {names}")
    if isinstance(value, float) and not math.isfinite(value):
        raise PlanFormatError(f"plan: {name} = {value!r} is not a finite number")
    if value == "" or (isinstance(value, int) and abs(value) >= 2**63):
        raise PlanFormatError(f"plan: {name} = {value!r} is empty or out of range")


def beyond_sense(size: object) -> bool:
    """Whether a depth or a width is a number, and larger than any."""
    return isinstance(size, int | float) and size > MOST_BLOCKS_OR_CHANNELS


def _check_options(model: str, options: Mapping[str, Any]) -> None:
    """Raise unless options are names with plain values, which ``model`` can take."""
    for name, value in options.items():
        items = value if isinstance(value, list | tuple) else [value]
        if not name.isidentifier() or not all(
            type(item) in (int, float, str, bool) for item in items
        ):
            raise PlanFormatError(
                f"plan: model option {name!r} = {value!r} is not a name with a plain value"
            )
        if name in _NO_OPTIONS:
            raise PlanFormatError(
                f"plan: {name!r} is no model option, the plan says it elsewhere; take it out of [model_options]"
            )
        if not is_user_model(model):
            if name not in _MODEL_OPTIONS:
                raise PlanFormatError(
                    f"plan: model option {name!r} is not known; {model} has {', '.join(sorted(_MODEL_OPTIONS))}"
                )
            _check_kind(name, value, _MODEL_OPTIONS[name])
        if name in _SIZES and beyond_sense(value):
            raise PlanFormatError(
                f"plan: {name} = {value!r} is out of range; give at most {MOST_BLOCKS_OR_CHANNELS}"
            )


def _check_parts(parts: Mapping[str, Any]) -> None:
    """Raise unless parts are numbers of bytes."""
    for name, value in parts.items():
        if not _PART_NAME.fullmatch(name) or type(value) is not int or value < 0:
            raise PlanFormatError(
                f"plan: part {name!r} = {value!r} is not a number of bytes named ..._bytes"
            )
