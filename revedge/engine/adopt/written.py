"""Which tensors of a traced forward are written over in place by what reads them."""

import operator
from typing import Any

from torch import fx, nn

# What these give out may share memory with what they are given.
_VIEWS = (
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "movedim", "squeeze", "unsqueeze", "contiguous",
    "chunk", "split", "tensor_split", "unbind", "select", "narrow", "detach", "float", "expand", "getitem",
)  # fmt: skip


def is_written(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a reader of what ``node`` gives out, or of a view of it, writes into it, as far as the graph shows."""
    return any(
        _writes(user, modules) or (_name(user) in _VIEWS and is_written(user, modules))
        for user in node.users
    )


def _writes(user: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if user.op == "call_module":
        parts = modules[str(user.target)].modules()
        return any(getattr(part, "inplace", False) for part in parts)
    name = _name(user)
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or user.target in _AUGMENTED or bool(user.kwargs.get("inplace"))


def _name(node: fx.Node) -> str:
    target: Any = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))


_AUGMENTED = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.iand, operator.ior, operator.ixor, operator.setitem,
)  # fmt: skip
