"""In what multiple a graph keeps a state that never leaves it, and how the state's name says so.

A state that is reset to 0 is kept as its negative (onnx_neurons.py), and one that is charged by a stream as what the
stream is kept as: an integer on its grid, 2^14 times as large. Multiples are powers of two, so no bit depends on them.

    next_state_3                   as it is
    minus_next_state_3             its negative
    minus_16384_next_state_3       -16384 times it
"""

import re

_KEPT = re.compile(r"(?:minus_(?:(\d+)_)?)?((?:next_)?state_\d+)")


def kept_name(state: str, multiple: float) -> str:
    """Return the name under which ``multiple`` times ``state`` is kept; a multiple is 1, or negative."""
    if multiple == 1.0:
        return state
    return f"minus_{state}" if multiple == -1.0 else f"minus_{-multiple:.0f}_{state}"


def read_kept(name: str) -> tuple[str, float] | None:
    """Return the state that ``name`` says is kept, and in what multiple; None for other values.

    >>> read_kept("minus_16384_next_state_3")
    ('next_state_3', -16384.0)
    """
    found = _KEPT.fullmatch(name)
    if found is None:
        return None
    times, state = found.groups()
    if state == name:
        return state, 1.0
    return state, -float(times or 1)
