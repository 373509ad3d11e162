"""The reversible neuron of arXiv 2308.08649, equations 1-6, over a whole sequence.

The groups split dimension ``dim`` in equal contiguous parts; below, T time, G groups, P and L what
stands before and after the groups. With n groups, "(1)-(3) for each group and (4)-(6) for the
last" is read as: every group but the last is driven by its own input, the last by Y of the one
before it; for n = 2 this is the paper's pair.
"""

import torch
from torch import Tensor

from revedge.kernels.params import ReversibleParams
from revedge.kernels.reference.rounding import to_float32
from revedge.kernels.reference.surrogates import surrogate_derivative


def grouped(x: Tensor, groups: int, dim: int) -> Tensor:
    """Return ``x`` as [T, P, G, L]; a view where the memory allows it."""
    dim = dim % x.dim()
    before = 1
    for size in x.shape[1:dim]:
        before *= size
    return x.reshape(x.shape[0], before, groups, -1)


def _membrane(v: Tensor, drive: Tensor, rp: ReversibleParams) -> Tensor:
    return v + (drive - v) * to_float32(1.0 / rp.tau)


def _next_state(v: Tensor, m: Tensor, y: Tensor, rp: ReversibleParams) -> Tensor:
    v_reset, alpha = to_float32(rp.v_reset), to_float32(rp.alpha)
    return ((1.0 - y) * m + y * v_reset) + v * alpha


def _step(x: list[Tensor], v: list[Tensor], rp: ReversibleParams) -> tuple[list[Tensor], ...]:
    """Equations 1-6 for one step: (Y, V', M); lists run over the groups."""
    n = len(x)
    y: list[Tensor] = []
    v_next: list[Tensor] = []
    membranes: list[Tensor] = []
    for k in range(n):
        m = _membrane(v[k], x[k] if k < n - 1 else y[n - 2], rp)
        spike = (m >= to_float32(rp.v_threshold)).to(m.dtype)
        y.append(spike + x[(k + 1) % n] * to_float32(rp.beta))
        v_next.append(_next_state(v[k], m, y[k], rp))
        membranes.append(m)
    return y, v_next, membranes


def reversible_forward(x: Tensor, rp: ReversibleParams, dim: int) -> tuple[Tensor, Tensor]:
    """Return (Y like x, V of the last step like x[0]); V starts at zero."""
    return _forward(x, rp, dim, None)


def reversible_forward_stored(
    x: Tensor, rp: ReversibleParams, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (Y, V, M like x): also the membranes before the spike, for the stored backward."""
    m = torch.empty_like(x, memory_format=torch.contiguous_format)
    return *_forward(x, rp, dim, grouped(m, rp.groups, dim)), m


def _forward(
    x: Tensor, rp: ReversibleParams, dim: int, m_TPGL: Tensor | None
) -> tuple[Tensor, Tensor]:
    x_TPGL = grouped(x, rp.groups, dim)
    y_TPGL = torch.empty_like(x_TPGL, memory_format=torch.contiguous_format)
    v = [torch.zeros_like(x_TPGL[0, :, 0]) for _ in range(rp.groups)]
    for t in range(x.shape[0]):
        y, v, m = _step(list(x_TPGL[t].unbind(1)), v, rp)
        torch.stack(y, 1, out=y_TPGL[t])
        if m_TPGL is not None:
            torch.stack(m, 1, out=m_TPGL[t])
    return y_TPGL.reshape(x.shape), torch.stack(v, 1).reshape(x.shape[1:])


def _rebuild(
    y: Tensor, rp: ReversibleParams, dim: int, keep_m: bool
) -> tuple[Tensor, list[list[Tensor]]]:
    """Rebuild X forward in time: S of the last group is known from Y alone, then all else is."""
    n = rp.groups
    threshold, beta = to_float32(rp.v_threshold), to_float32(rp.beta)
    y_TPGL = grouped(y, n, dim)
    x_TPGL = torch.empty_like(y_TPGL, memory_format=torch.contiguous_format)
    v = [torch.zeros_like(y_TPGL[0, :, 0]) for _ in range(n)]
    kept: list[list[Tensor]] = []
    for t in range(y.shape[0]):
        y_t, x_t = y_TPGL[t].unbind(1), x_TPGL[t].unbind(1)
        m: list[Tensor] = [v[0]] * n
        drive = y_t[n - 2]
        for k in [n - 1, *range(n - 1)]:
            m[k] = _membrane(v[k], drive, rp)
            spike = (m[k] >= threshold).to(y.dtype)
            drive = (y_t[k] - spike) / beta
            x_t[(k + 1) % n].copy_(drive)
        v = [_next_state(v[k], m[k], y_t[k], rp) for k in range(n)]
        if keep_m:
            kept.append(m)
    return x_TPGL.reshape(y.shape), kept


def reversible_reconstruct(y: Tensor, rp: ReversibleParams, dim: int) -> Tensor:
    """Return X from Y alone; bit exact where ``spike + beta X`` was, as on the grid."""
    return _rebuild(y, rp, dim, keep_m=False)[0]


def reversible_backward_(y: Tensor, g: Tensor, rp: ReversibleParams, dim: int) -> Tensor:
    """Return X, rebuilt, and overwrite ``g``, the gradient of Y, with that of X.

    The vector-Jacobian product of the whole sequence, through V too; the paper's (11) and (12)
    are column sums of one step's Jacobian, and (12) is wrong as printed.
    """
    x, kept = _rebuild(y, rp, dim, keep_m=True)
    _gradient_(y, kept, g, rp, dim)
    return x


def reversible_backward(y: Tensor, g: Tensor, rp: ReversibleParams, dim: int) -> Tensor:
    """Return the gradient of X; ``g`` stays as it is, and X is not wanted."""
    g_x = g.clone(memory_format=torch.contiguous_format)
    reversible_backward_(y, g_x, rp, dim)
    return g_x


def reversible_stored_backward_(
    y: Tensor, m: Tensor, g: Tensor, rp: ReversibleParams, dim: int
) -> Tensor:
    """:func:`reversible_backward_` with the membranes ``m`` that the forward pass kept."""
    _gradient_(y, [list(m_t.unbind(1)) for m_t in grouped(m, rp.groups, dim)], g, rp, dim)
    spike = (m >= to_float32(rp.v_threshold)).to(y.dtype)
    passed = grouped((y - spike) / to_float32(rp.beta), rp.groups, dim)
    return passed.roll(1, 2).reshape(y.shape)


def reversible_stored_backward(
    y: Tensor, m: Tensor, g: Tensor, rp: ReversibleParams, dim: int
) -> Tensor:
    """:func:`reversible_backward` with the membranes ``m`` that the forward pass kept."""
    g_x = g.clone(memory_format=torch.contiguous_format)
    reversible_stored_backward_(y, m, g_x, rp, dim)
    return g_x


def _gradient_(
    y: Tensor, kept: list[list[Tensor]], g: Tensor, rp: ReversibleParams, dim: int
) -> None:
    """Overwrite ``g`` with the gradient of X, from Y and the membranes of every step and group."""
    n = rp.groups
    a, one_minus_a = to_float32(1.0 / rp.tau), to_float32(1.0 - 1.0 / rp.tau)
    alpha, beta, threshold = to_float32(rp.alpha), to_float32(rp.beta), to_float32(rp.v_threshold)
    y_TPGL, g_TPGL = grouped(y, n, dim), grouped(g, n, dim)
    g_v = [torch.zeros_like(y_TPGL[0, :, 0]) for _ in range(n)]
    for t in reversed(range(y.shape[0])):
        y_t, g_t = y_TPGL[t].unbind(1), g_TPGL[t].unbind(1)
        g_y: list[Tensor] = [g_v[0]] * n
        g_m: list[Tensor] = [g_v[0]] * n
        for k in reversed(range(n)):
            m = kept[t][k]
            g_y[k] = g_t[k].clone()  # g_t is overwritten below
            if not rp.detach_reset:
                g_y[k] = g_y[k] + g_v[k] * (to_float32(rp.v_reset) - m)
            if k == n - 2:
                g_y[k] = g_y[k] + g_m[n - 1] * a
            h = surrogate_derivative(m - threshold, rp.surrogate, rp.surrogate_alpha)
            g_m[k] = g_y[k] * h + g_v[k] * (1.0 - y_t[k])
            g_v[k] = g_v[k] * alpha + g_m[k] * one_minus_a
        for k in range(n):
            through = g_y[(k - 1) % n] * beta
            g_t[k].copy_(through if k == n - 1 else g_m[k] * a + through)


def reversible_inverse_printed(
    y: Tensor, v_T: Tensor, rp: ReversibleParams, dim: int
) -> tuple[Tensor, Tensor, float]:
    """Return (X, V_0, smallest |denominator| met) by the inverse that the paper prints.

    It runs backwards in time and divides by ``(1 - Y)(1 - 1/tau) + alpha``, which vanishes: errors
    of V grow from step to step, and X comes back wrong by whole spikes. Kept for fidelity only;
    :func:`reversible_reconstruct` needs neither V_T nor the division.
    """
    n, a = rp.groups, to_float32(1.0 / rp.tau)
    v_reset, beta = to_float32(rp.v_reset), to_float32(rp.beta)
    y_TPGL = grouped(y, n, dim)
    x_TPGL = torch.empty_like(y_TPGL, memory_format=torch.contiguous_format)
    v = list(grouped(v_T[None], n, dim)[0].unbind(1))
    smallest = float("inf")
    for t in reversed(range(y.shape[0])):
        y_t, x_t = y_TPGL[t].unbind(1), x_TPGL[t].unbind(1)
        drive = y_t[n - 2]
        for k in [n - 1, *range(n - 1)]:
            denominator = (1.0 - y_t[k]) * to_float32(1.0 - 1.0 / rp.tau) + to_float32(rp.alpha)
            if denominator.numel():
                smallest = min(smallest, float(denominator.abs().min()))
            v[k] = (v[k] - ((1.0 - y_t[k]) * drive) * a - y_t[k] * v_reset) / denominator
            m = _membrane(v[k], drive, rp)
            drive = (y_t[k] - (m >= to_float32(rp.v_threshold)).to(y.dtype)) / beta
            x_t[(k + 1) % n].copy_(drive)
    return x_TPGL.reshape(y.shape), torch.stack(v, 1).reshape(v_T.shape), smallest
