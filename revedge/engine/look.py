"""A look between two units: what the process that trains asks there besides its work, as whether memory is enough.

There is one for the whole process, because a network does not know in which process it is trained.
"""

from collections.abc import Callable


def _nothing() -> None:
    pass


_look: Callable[[], None] = _nothing


def look_between_units(look: Callable[[], None] | None) -> None:
    """Call ``look`` before every unit of every run, in forward and backward; None ends that.

    What it raises ends the step, and is raised by the forward pass or by ``backward``.
    """
    global _look
    _look = look or _nothing


def look() -> None:
    """Take the look."""
    _look()
