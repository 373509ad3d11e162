"""The backward of the reversible neuron as reversible layers have it: inverse, forward again, autograd.

This is the middle of figure 4 in arXiv 2308.08649 (section 4, equation 13), and what MemCNN and the reversible layers
of CogDL do. It is here to be measured against: `revedge.kernels.reversible_backward` gives the same gradient from the
reconstruction alone, without a graph.
"""

import torch
from torch import Tensor

from revedge.kernels import ReversibleParams
from revedge.kernels.reference.reversible import grouped
from revedge.neurons.surrogate import Surrogate, spike

_Groups = list[Tensor]


def groups_step(x: _Groups, v: _Groups, rp: ReversibleParams) -> tuple[_Groups, _Groups]:
    """Return (Y, V') after one step; `functional.reversible_step` on lists of groups [P, L], differentiable.

    Nothing is concatenated, and factors that change nothing are left out, so this is the faster of the two.
    """
    surrogate = Surrogate(rp.surrogate, rp.surrogate_alpha)
    n = rp.groups
    y: _Groups = []
    v_next: _Groups = []
    for k in range(n):
        m = _membrane(v[k], x[k] if k < n - 1 else y[n - 2], rp)
        passed = x[(k + 1) % n]
        y.append(
            spike(m, rp.v_threshold, surrogate) + (passed if rp.beta == 1.0 else passed * rp.beta)
        )
        v_next.append(_next_state(v[k], m, y[k].detach() if rp.detach_reset else y[k], rp))
    return y, v_next


def conventional_backward(
    y: Tensor, g_y: Tensor, rp: ReversibleParams, dim: int, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (X, gradient of X) from Y and its gradient, by the forward-time inverse.

    Step by step: the input is inverted from Y and the state before; the step runs again with a graph, whose state
    serves the next inversion too; then autograd goes back through all steps.

    Args:
        y, g_y: [T, ...], any strides.
        rp: the neuron.
        dim: the dimension that the groups split, as in `revedge.kernels.reversible_backward`.
        out: takes the gradient, contiguous; may be ``g_y``. None makes a new tensor.

    Memory: the graph of all T steps of this one layer, for as long as the call lasts.
    """
    n = rp.groups
    y_TPGL, g_TPGL = grouped(y, n, dim), grouped(g_y, n, dim)
    x_TPGL = torch.empty_like(y_TPGL, memory_format=torch.contiguous_format)
    v = [torch.zeros_like(y_TPGL[0, :, 0]) for _ in range(n)]
    inputs: _Groups = []
    outputs: _Groups = []
    for y_t, x_t in zip(y_TPGL, x_TPGL, strict=True):
        with torch.no_grad():
            _invert(y_t.unbind(1), v, x_t.unbind(1), rp)
        leaves = [leaf.detach().requires_grad_() for leaf in x_t.unbind(1)]
        with torch.enable_grad():
            again, v = groups_step(leaves, v, rp)
        inputs += leaves
        outputs += again
    upstream = [g for g_t in g_TPGL for g in g_t.unbind(1)]
    found = torch.autograd.grad(outputs, inputs, upstream)
    result = torch.empty_like(x_TPGL).view(y.shape) if out is None else out
    for t, g_t in enumerate(grouped(result, n, dim)):
        torch.stack(found[t * n : (t + 1) * n], 1, out=g_t)
    return x_TPGL.view(y.shape), result


def conventional_backward_printed(
    y: Tensor, v_T: Tensor, g_y: Tensor, rp: ReversibleParams, dim: int
) -> tuple[Tensor, Tensor]:
    """Return (X, gradient of X) by the inverse that the paper prints, backwards in time, from V after the last step.

    One step's graph lives at a time. X and the gradient inherit the errors of that inverse: for fidelity and for
    measurements, not for training.
    """
    n = rp.groups
    y_TPGL, g_TPGL = grouped(y, n, dim), grouped(g_y, n, dim)
    x_TPGL = torch.empty_like(y_TPGL, memory_format=torch.contiguous_format)
    result_TPGL = torch.empty_like(x_TPGL)
    v = list(grouped(v_T[None], n, dim)[0].unbind(1))
    g_v = [torch.zeros_like(v_k) for v_k in v]
    for t in reversed(range(y.shape[0])):
        with torch.no_grad():
            v = _invert_printed(y_TPGL[t].unbind(1), v, x_TPGL[t].unbind(1), rp)
        before = [v_k.requires_grad_() for v_k in v]
        leaves = [leaf.detach().requires_grad_() for leaf in x_TPGL[t].unbind(1)]
        with torch.enable_grad():
            again, after = groups_step(leaves, before, rp)
        found = torch.autograd.grad(again + after, leaves + before, [*g_TPGL[t].unbind(1), *g_v])
        torch.stack(found[:n], 1, out=result_TPGL[t])
        g_v = list(found[n:])
        v = [v_k.detach() for v_k in v]
    return x_TPGL.view(y.shape), result_TPGL.view(y.shape)


def _membrane(v: Tensor, drive: Tensor, rp: ReversibleParams) -> Tensor:
    return v + (drive - v) * (1.0 / rp.tau)


def _next_state(v: Tensor, m: Tensor, y: Tensor, rp: ReversibleParams) -> Tensor:
    kept = (1.0 - y) * m
    return (kept if rp.v_reset == 0.0 else kept + y * rp.v_reset) + v * rp.alpha


def _passed(y: Tensor, m: Tensor, rp: ReversibleParams, out: Tensor) -> Tensor:
    torch.sub(y, m.ge_(rp.v_threshold), out=out)
    return out if rp.beta == 1.0 else out.div_(rp.beta)


def _invert(y: tuple[Tensor, ...], v: _Groups, x: tuple[Tensor, ...], rp: ReversibleParams) -> None:
    """Write X of one step into ``x``, from Y and the state before it."""
    n = rp.groups
    drive = y[n - 2]
    for k in [n - 1, *range(n - 1)]:
        drive = _passed(y[k], _membrane(v[k], drive, rp), rp, x[(k + 1) % n])


def _invert_printed(
    y: tuple[Tensor, ...], v: _Groups, x: tuple[Tensor, ...], rp: ReversibleParams
) -> _Groups:
    """Write X of one step into ``x``, from Y and the state after it; return the state before (equations 7-10)."""
    n, a = rp.groups, 1.0 / rp.tau
    before = list(v)
    drive = y[n - 2]
    for k in [n - 1, *range(n - 1)]:
        rest = 1.0 - y[k]
        top = v[k] - (rest * drive) * a
        if rp.v_reset != 0.0:
            top = top - y[k] * rp.v_reset
        before[k] = top / (rest * (1.0 - a) + rp.alpha)
        drive = _passed(y[k], _membrane(before[k], drive, rp), rp, x[(k + 1) % n])
    return before
