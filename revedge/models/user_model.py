"""Networks that a function of the user's own makes; `revedge.create` is asked for them by where the function lies.

The function is called as ``function(in_shape, num_classes, timesteps, **options)``: (C, H, W) of a frame, the number of
logits, T, and what options were given (``depth``, ``width``, ``neuron``, ...), of which it takes what it likes. It
returns a `SpikingNet`, which is used as it is, or any ``nn.Module``, which is put under `revedge.engine.apply`: its
forward takes ``[T, B, C, H, W]`` and returns logits ``[B, num_classes]``, or ``[T, B, num_classes]``.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from revedge import user_code
from revedge.errors import RevedgeError, UsageError
from revedge.models.net import SpikingNet
from revedge.models.user_net import UserNet

_GIVEN = ("in_shape", "num_classes", "timesteps")
_OURS = ("name", *_GIVEN, "static")  # of the arguments of `create`; the others are the function's


def build_user_model(config: dict[str, Any], strategy: str | Sequence[str]) -> SpikingNet:
    """Return the network of ``config``, the arguments of `revedge.models.create`.

    Raises:
        UsageError: its code is not found, takes other arguments, raises, or returns no module.
    """
    name = user_code.absolute(config["name"])
    config = {**config, "name": name}
    in_shape = (int(config["in_shape"][0]), *map(int, config["in_shape"][1:]))
    options = {key: value for key, value in config.items() if key not in _OURS}
    function = user_code.load(name)
    _check_signature(name, function, options)
    try:
        made = function(in_shape, config["num_classes"], config["timesteps"], **options)
    except (MemoryError, RevedgeError):
        raise
    except Exception as error:
        if _speaks_of_memory(error):
            raise
        raise user_code.raised(name, "building it", error) from error
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"model {name!r} returns {type(made).__name__}, not a torch.nn.Module; return the network"
        )
    net = made
    if not isinstance(net, SpikingNet):
        net = UserNet(
            made,
            in_shape=in_shape,  # type: ignore[arg-type]
            num_classes=config["num_classes"],
            timesteps=config["timesteps"],
            static=config.get("static", False),
            config=config,
        )
    net.config = config
    net.set_strategy(strategy)
    return net


def _check_signature(name: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # of code that is no Python
        return
    try:
        signature.bind(*_GIVEN)
    except TypeError as error:
        raise UsageError(
            f"model {name!r} takes {signature}, but is called with (in_shape, num_classes, timesteps): {error}"
        ) from None
    free = list(signature.parameters.values())[len(_GIVEN) :]
    if any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
        return
    named = [
        each.name for each in free if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    unknown = [option for option in options if option not in named]
    if unknown:
        raise UsageError(
            f"model {name!r} takes no {unknown[0]}; beside in_shape, num_classes and timesteps it takes "
            f"{', '.join(named) or 'nothing'}"
        )


def _speaks_of_memory(error: Exception) -> bool:
    """Whether torch had none left, which is no mistake of the user's code; the trainer knows what to do then."""
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, RuntimeError) and ("alloc" in text or "out of memory" in text)
