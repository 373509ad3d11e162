"""A traced forward must not read attributes of modules that are called as they are: those may write them as they run.

A graph would know the values that they had while it was traced. Where nothing reads them, such a module may count its
calls or remember a mean as it likes: the graph stays the same.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

_KNOWN = ("torch.", "revedge.", "spikingjelly.", "snntorch.")


class ReadError(Exception):
    """An attribute was read; the text says which, of what."""


def called_as_they_are(root: nn.Module, graph: fx.Graph) -> list[nn.Module]:
    """Return the modules of the user's own that ``graph`` calls, and all modules in them."""
    names = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    called = [
        module for name, module in root.named_modules(remove_duplicate=False) if name in names
    ]
    own = [module for module in called if not type(module).__module__.startswith(_KNOWN)]
    return list({part: None for module in own for part in module.modules()})


@contextmanager
def unread(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Raise `ReadError` where an attribute of one of ``modules`` is read inside, but for its mode and what is torch's.

    A class alone can tell, so each module gets one of its own for the time.
    """
    kinds = [(module, type(module)) for module in modules]
    try:
        for module, kind in kinds:
            members = {"__getattribute__": _refusing(kind), "__module__": kind.__module__}
            module.__class__ = type(kind.__name__, (kind,), members)
        yield
    finally:
        for module, kind in kinds:
            module.__class__ = kind


def _refusing(kind: type[nn.Module]) -> Callable[[Any, str], Any]:
    def read(self: Any, name: str) -> Any:
        torchs = name.startswith("_") or name == "training"
        if not torchs and name in kind.__getattribute__(self, "__dict__"):
            raise ReadError(f"it reads {name!r} of a {kind.__name__}, which is called as it is")
        return kind.__getattribute__(self, name)

    return read
