"""The reversible neuron over a whole sequence; equations in :class:`ReversibleParams`.

The groups split dimension ``dim`` (not the first, which is time) into equal contiguous parts; the
state starts at zero. Nothing here is differentiable.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from revedge.errors import UsageError
from revedge.kernels import reference
from revedge.kernels._dispatch import register
from revedge.kernels.native import reversible as native
from revedge.kernels.params import ReversibleParams

_from_floats = ReversibleParams.from_floats

_forward = register(
    "reversible_forward(Tensor x, float[] p, int dim) -> (Tensor, Tensor)",
    reference=lambda x, p, dim: reference.reversible_forward(x, _from_floats(p), dim),
    native=native.reversible_forward,
    meta=lambda x, p, dim: (x.new_empty(x.shape), x.new_empty(x.shape[1:])),
)
_reconstruct = register(
    "reversible_reconstruct(Tensor y, float[] p, int dim) -> Tensor",
    reference=lambda y, p, dim: reference.reversible_reconstruct(y, _from_floats(p), dim),
    native=native.reversible_reconstruct,
    meta=lambda y, p, dim: y.new_empty(y.shape),
)
_backward_ = register(
    "reversible_backward_(Tensor y, Tensor(a!) g, float[] p, int dim) -> Tensor",
    reference=lambda y, g, p, dim: reference.reversible_backward_(y, g, _from_floats(p), dim),
    native=native.reversible_backward_,
    meta=lambda y, g, p, dim: y.new_empty(y.shape),
)
_backward = register(
    "reversible_backward(Tensor y, Tensor g, float[] p, int dim) -> Tensor",
    reference=lambda y, g, p, dim: reference.reversible_backward(y, g, _from_floats(p), dim),
    native=native.reversible_backward,
    meta=lambda y, g, p, dim: y.new_empty(y.shape),
)
_forward_stored = register(
    "reversible_forward_stored(Tensor x, float[] p, int dim) -> (Tensor, Tensor, Tensor)",
    reference=lambda x, p, dim: reference.reversible_forward_stored(x, _from_floats(p), dim),
    native=native.reversible_forward_stored,
    meta=lambda x, p, dim: (x.new_empty(x.shape), x.new_empty(x.shape[1:]), x.new_empty(x.shape)),
)
_stored_backward_ = register(
    "reversible_stored_backward_(Tensor y, Tensor m, Tensor(a!) g, float[] p, int dim) -> Tensor",
    reference=lambda y, m, g, p, dim: reference.reversible_stored_backward_(
        y, m, g, _from_floats(p), dim
    ),
    native=native.reversible_stored_backward_,
    meta=lambda y, m, g, p, dim: y.new_empty(y.shape),
)
_stored_backward = register(
    "reversible_stored_backward(Tensor y, Tensor m, Tensor g, float[] p, int dim) -> Tensor",
    reference=lambda y, m, g, p, dim: reference.reversible_stored_backward(
        y, m, g, _from_floats(p), dim
    ),
    native=native.reversible_stored_backward,
    meta=lambda y, m, g, p, dim: y.new_empty(y.shape),
)


def check_groups(shape: torch.Size, rp: ReversibleParams, dim: int) -> None:
    """Raise UsageError unless ``rp.groups`` >= 2 divides dimension ``dim``, which is not time."""
    if not -len(shape) < dim < len(shape) or dim == 0:
        raise UsageError(f"dimension {dim} of shape {tuple(shape)} cannot be split in groups")
    if rp.groups < 2 or shape[dim] % rp.groups:
        raise UsageError(
            f"{rp.groups} groups do not split dimension {dim} of size {shape[dim]}; "
            f"use a divisor of {shape[dim]} that is 2 or more"
        )


@overload
def reversible_forward(
    x: Tensor, rp: ReversibleParams, dim: int = -1, *, return_state: Literal[False] = False
) -> Tensor: ...
@overload
def reversible_forward(
    x: Tensor, rp: ReversibleParams, dim: int = -1, *, return_state: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@torch.no_grad()
def reversible_forward(
    x: Tensor, rp: ReversibleParams, dim: int = -1, *, return_state: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Return Y [T, ...] of ``x`` [T, ...], or (Y, V after the last step [...])."""
    check_groups(x.shape, rp, dim)
    y, v_T = _forward(x, rp.as_floats(), dim)
    return (y, v_T) if return_state else y


@torch.no_grad()
def reversible_reconstruct(y: Tensor, rp: ReversibleParams, dim: int = -1) -> Tensor:
    """Return X from Y alone, running forward in time.

    Bit exact where ``spike + beta * x`` was exact (x on the grid, beta a power of two); errors do
    not grow with T.
    """
    check_groups(y.shape, rp, dim)
    result: Tensor = _reconstruct(y, rp.as_floats(), dim)
    return result


@torch.no_grad()
def reversible_forward_stored(
    x: Tensor, rp: ReversibleParams, dim: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (Y [T, ...], V after the last step [...], M [T, ...]) of ``x`` [T, ...].

    M, the membranes before the spike, and Y are all that ordinary back-propagation through time
    needs: give M to a backward as ``m``, and nothing is rebuilt. Memory: M, as large as x.
    """
    check_groups(x.shape, rp, dim)
    y, v_T, m = _forward_stored(x, rp.as_floats(), dim)
    return y, v_T, m


@torch.no_grad()
def reversible_backward_(
    y: Tensor, g_y: Tensor, rp: ReversibleParams, dim: int = -1, m: Tensor | None = None
) -> Tensor:
    """Return X, rebuilt from Y; overwrite ``g_y`` (contiguous), the gradient of Y, with X's.

    The gradient is that of the whole sequence, through the state too. Memory: the returned X.
    With ``m``, kept by :func:`reversible_forward_stored`, the membranes are not rebuilt.
    """
    check_groups(y.shape, rp, dim)
    p = rp.as_floats()
    result: Tensor = (
        _backward_(y, g_y, p, dim) if m is None else _stored_backward_(y, m, g_y, p, dim)
    )
    return result


@torch.no_grad()
def reversible_backward(
    y: Tensor, g_y: Tensor, rp: ReversibleParams, dim: int = -1, m: Tensor | None = None
) -> Tensor:
    """Return the gradient of X as a new tensor, same bits as :func:`reversible_backward_`."""
    check_groups(y.shape, rp, dim)
    p = rp.as_floats()
    result: Tensor = _backward(y, g_y, p, dim) if m is None else _stored_backward(y, m, g_y, p, dim)
    return result


@torch.no_grad()
def reversible_inverse_printed(
    y: Tensor, v_T: Tensor, rp: ReversibleParams, dim: int = -1
) -> tuple[Tensor, Tensor, float]:
    """Return (X, V_0, smallest |denominator| met): the inverse that the paper prints.

    Backwards in time, dividing by ``(1 - Y)(1 - 1/tau) + alpha``, which vanishes: for fidelity
    only. The last value measures how far to trust it; :func:`reversible_reconstruct` needs none.
    """
    check_groups(y.shape, rp, dim)
    return reference.reversible_inverse_printed(y, v_T, rp, dim)
