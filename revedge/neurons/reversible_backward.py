"""The three backwards of the reversible neuron: what each keeps, and how it finds the gradient.

| name         | kept besides Y           | the way back                                                              |
|--------------|--------------------------|---------------------------------------------------------------------------|
| direct       | nothing                  | membranes from Y, forward in time, and a hand-written VJP, in one kernel  |
| conventional | nothing                  | input from Y, the step again with a graph, autograd                       |
| stored       | M, as large as the input | a hand-written VJP over the kept membranes: back-propagation through time |

All three give the gradient of the whole sequence. Where the input comes back exactly (on the grid, beta a power of two)
`direct` and `stored` agree to the last bit; `conventional` adds the same terms in autograd's order.
"""

from typing import Literal

from torch import Tensor

from revedge.errors import UsageError
from revedge.kernels import (
    ReversibleParams,
    reversible_backward,
    reversible_backward_,
    reversible_forward,
    reversible_forward_stored,
)
from revedge.neurons.conventional import conventional_backward

Backward = Literal["direct", "conventional", "stored"]
BACKWARDS: tuple[Backward, ...] = ("direct", "conventional", "stored")


def check_backward(name: str) -> Backward:
    """Return ``name`` if it is one of `BACKWARDS`.

    Raises:
        UsageError: it is not.
    """
    if name not in BACKWARDS:
        raise UsageError(f"backward {name!r} is not known; use {', '.join(BACKWARDS)}")
    return name


def sequence(
    x: Tensor, rp: ReversibleParams, dim: int, backward: Backward
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (Y, V after the last step, M if ``backward`` needs it kept) of ``x`` [T, ...], contiguous."""
    if backward == "stored":
        return reversible_forward_stored(x, rp, dim)
    y, v = reversible_forward(x, rp, dim, return_state=True)
    return y, v, None


def sequence_backward(
    y: Tensor, m: Tensor | None, g_y: Tensor, rp: ReversibleParams, dim: int, backward: Backward
) -> Tensor:
    """Return the gradient of the input as a new tensor; ``m`` is what `sequence` gave."""
    if backward == "conventional":
        return conventional_backward(y, g_y, rp, dim)[1]
    return reversible_backward(y, g_y.contiguous(), rp, dim, m)


def sequence_backward_(
    y: Tensor, m: Tensor | None, g_y: Tensor, rp: ReversibleParams, dim: int, backward: Backward
) -> Tensor:
    """Return the input; overwrite ``g_y``, contiguous, with its gradient."""
    if backward == "conventional":
        return conventional_backward(y, g_y, rp, dim, out=g_y)[0]
    return reversible_backward_(y, g_y, rp, dim, m)
