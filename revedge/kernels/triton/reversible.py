"""The reversible neuron; the definition is reference/reversible.py, repeated operation by operation.

x, y, m, g: [T, P, G, L] with the G groups; v: [P, G, L]. Chain q = p L + l of G coupled membranes meets
no other, so a program owns a block of chains and walks through time.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from revedge.kernels._shapes import check_shape
from revedge.kernels.params import SURROGATES, ReversibleParams
from revedge.kernels.reference.rounding import to_float32
from revedge.kernels.triton._launch import BLOCK, launch, slabs
from revedge.kernels.triton.surrogates import surrogate_at, surrogate_floats

_Floats = Sequence[float]


@triton.jit
def _next_state(v, m, y, v_reset, alpha):
    return ((1.0 - y) * m + y * v_reset) + v * alpha


@triton.jit
def _spike(m, threshold):
    return tl.where(m >= threshold, 1.0, 0.0)


@triton.jit
def _forward(
    x, y, v_last, membranes, T, G, L, chains, a, alpha, beta, threshold, v_reset,
    KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One group of each chain; the program of group G - 2 takes the last one along, which it drives."""
    k = tl.program_id(0) % (G - 1)
    q = (tl.program_id(0) // (G - 1)) * BLOCK + tl.arange(0, BLOCK)
    there = q < chains
    leads = tl.where(k == G - 2, q, chains) < chains
    first = (q // L) * (G * L) + q % L
    own = first + k * L
    last = first + (G - 1) * L
    v = tl.zeros([BLOCK], tl.float32)
    w = tl.zeros([BLOCK], tl.float32)
    for t in range(T):
        step = t * (chains * G)
        m = v + (tl.load(x + step + own, mask=there, other=0.0) - v) * a
        passed = tl.load(x + step + own + L, mask=there, other=0.0)
        out = _spike(m, threshold) + passed * beta
        tl.store(y + step + own, out, mask=there)
        if KEEP:
            tl.store(membranes + step + own, m, mask=there)
        v = _next_state(v, m, out, v_reset, alpha)
        m = w + (out - w) * a
        passed = tl.load(x + step + first, mask=leads, other=0.0)
        out = _spike(m, threshold) + passed * beta
        tl.store(y + step + last, out, mask=leads)
        if KEEP:
            tl.store(membranes + step + last, m, mask=leads)
        w = _next_state(w, m, out, v_reset, alpha)
    tl.store(v_last + own, v, mask=there)
    tl.store(v_last + last, w, mask=leads)


@triton.jit
def _rebuild(
    x, y, first, there, state, kept, T, G, L, chains, a, alpha, beta, threshold, v_reset,
    KEEP: tl.constexpr, WANT_X: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """X from Y, forward in time. state [G, BLOCK]: V; kept [T, G, BLOCK]: M, if KEEP."""
    zero = tl.zeros([BLOCK], tl.float32)
    for k in range(G):
        tl.store(state + k * BLOCK, zero)
    for t in range(T):
        tl.debug_barrier()  # V of the step before may have been written by another thread
        at = t * (chains * G) + first
        drive = tl.load(y + at + (G - 2) * L, mask=there, other=0.0)
        for turn in range(G):
            k = (turn + G - 1) % G  # the last group first, then 0, 1, ...
            v = tl.load(state + k * BLOCK)
            out = tl.load(y + at + k * L, mask=there, other=0.0)
            m = v + (drive - v) * a
            drive = tl.div_rn(out - _spike(m, threshold), beta)
            if WANT_X:
                tl.store(x + at + ((k + 1) % G) * L, drive, mask=there)
            tl.store(state + k * BLOCK, _next_state(v, m, out, v_reset, alpha))
            if KEEP:
                tl.store(kept + (t * G + k) * BLOCK, m)
    tl.debug_barrier()


@triton.jit
def _back_group(
    y, g, at, there, state, m, g_m, a, one_minus_a, alpha, threshold, v_reset,
    surrogate_alpha, slope, height, half, coupled, DETACH: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """One group, one step back: return (dL/dY, dL/dM), and carry dL/dV on in ``state``."""
    g_v = tl.load(state)
    g_y = tl.load(g + at, mask=there, other=0.0)
    if not DETACH:
        g_y = g_y + g_v * (v_reset - m)
    g_y = tl.where(coupled, g_y + g_m * a, g_y)
    slope_at = surrogate_at(m - threshold, surrogate_alpha, slope, height, half, KIND)
    out = tl.load(y + at, mask=there, other=0.0)
    g_m = g_y * slope_at + g_v * (1.0 - out)
    tl.store(state, g_v * alpha + g_m * one_minus_a)
    return g_y, g_m


@triton.jit
def _membrane(
    x, y, membranes, kept, at, there, t, k, G, L, beta, threshold,
    STORED: tl.constexpr, WANT_X: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """M of group k at step t, from the forward pass or rebuilt; with the former X is not there yet."""
    if STORED:
        m = tl.load(membranes + at + k * L, mask=there, other=0.0)
        if WANT_X:
            out = tl.load(y + at + k * L, mask=there, other=0.0)
            passed = tl.div_rn(out - _spike(m, threshold), beta)
            tl.store(x + at + ((k + 1) % G) * L, passed, mask=there)
    else:
        m = tl.load(kept + (t * G + k) * BLOCK)
    return m


@triton.jit
def _backward(
    y, membranes, g, g_x, x, scratch, T, G, L, chains, a, one_minus_a, alpha, beta, threshold,
    v_reset, surrogate_alpha, slope, height, half,
    GRADIENT: tl.constexpr, STORED: tl.constexpr, WANT_X: tl.constexpr, DETACH: tl.constexpr,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BLOCK)
    rows = G
    if GRADIENT and not STORED:
        rows = G * (T + 1)
    state = scratch + tl.program_id(0) * rows * BLOCK + lane  # V, on the way back dL/dV
    kept = state + G * BLOCK
    zero = tl.zeros([BLOCK], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(chains, BLOCK), tl.num_programs(0)):
        tl.debug_barrier()  # the block before is done with the scratch
        q = block * BLOCK + lane
        there = q < chains
        first = (q // L) * (G * L) + q % L
        if not STORED:
            _rebuild(
                x, y, first, there, state, kept, T, G, L, chains, a, alpha, beta, threshold,
                v_reset, GRADIENT, WANT_X, BLOCK,
            )  # fmt: skip
        if GRADIENT:
            for k in range(G):
                tl.store(state + k * BLOCK, zero)
            for back in range(T):
                tl.debug_barrier()
                t = T - 1 - back
                at = t * (chains * G) + first
                k = G - 1
                m = _membrane(
                    x, y, membranes, kept, at, there, t, k, G, L, beta, threshold, STORED, WANT_X,
                    BLOCK,
                )  # fmt: skip
                g_last, g_m = _back_group(
                    y, g, at + k * L, there, state + k * BLOCK, m, zero, a, one_minus_a, alpha,
                    threshold, v_reset, surrogate_alpha, slope, height, half, False, DETACH, KIND,
                )  # fmt: skip
                for turn in range(G - 1):
                    k = G - 2 - turn
                    g_m_above = g_m
                    m = _membrane(
                        x, y, membranes, kept, at, there, t, k, G, L, beta, threshold, STORED,
                        WANT_X, BLOCK,
                    )  # fmt: skip
                    g_y, g_m = _back_group(
                        y, g, at + k * L, there, state + k * BLOCK, m, g_m_above, a, one_minus_a,
                        alpha, threshold, v_reset, surrogate_alpha, slope, height, half, turn == 0,
                        DETACH, KIND,
                    )  # fmt: skip
                    # X of the group above: its dL/dY is read, so the place is free.
                    through = g_y * beta
                    above = tl.where(turn == 0, through, g_m_above * a + through)
                    tl.store(g_x + at + (k + 1) * L, above, mask=there)
                tl.store(g_x + at, g_m * a + g_last * beta, mask=there)


def _sizes(x: Tensor, groups: int, dim: int) -> tuple[int, int, int, int]:
    """Return (T, G, L, chains = P L)."""
    before = math.prod(x.shape[1 : dim % x.dim()])
    length = x.numel() // max(1, x.shape[0] * before * groups)
    return x.shape[0], groups, length, before * length


def _constants(rp: ReversibleParams) -> list[float]:
    """Return 1/tau, alpha, beta, threshold and reset as the reference rounds them."""
    values = (1.0 / rp.tau, rp.alpha, rp.beta, rp.v_threshold, rp.v_reset)
    return [to_float32(value) for value in values]


def _run_forward(x: Tensor, m: Tensor | None, p: _Floats, dim: int) -> tuple[Tensor, Tensor]:
    rp = ReversibleParams.from_floats(p)
    y, v = torch.empty_like(x), x.new_empty(x.shape[1:])
    steps, groups, length, chains = _sizes(x, rp.groups, dim)
    launch(
        _forward, triton.cdiv(chains, BLOCK) * (groups - 1), x, y, v, x if m is None else m, steps,
        groups, length, chains, *_constants(rp), KEEP=m is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return y, v


def _run_back(
    y: Tensor,
    m: Tensor | None,
    g: Tensor | None,
    g_x: Tensor | None,
    x: Tensor | None,
    p: _Floats,
    dim: int,
) -> None:
    """Write X to ``x`` and the gradient to ``g_x``, each if given; M from ``m``, or rebuilt."""
    check_shape("g_y", g, y.shape)
    check_shape("m", m, y.shape)
    rp = ReversibleParams.from_floats(p)
    steps, groups, length, chains = _sizes(y, rp.groups, dim)
    kept = 0 if g is None or m is not None else steps
    scratch, programs = slabs(y, chains, groups * (kept + 1))
    a, *others = _constants(rp)
    given = [y if tensor is None else tensor for tensor in (m, g, g_x, x)]
    launch(
        _backward, programs, y, *given, scratch, steps, groups, length, chains,
        a, to_float32(1.0 - 1.0 / rp.tau), *others, *surrogate_floats(rp.surrogate_alpha),
        GRADIENT=g is not None, STORED=m is not None, WANT_X=x is not None,
        DETACH=rp.detach_reset, KIND=SURROGATES.index(rp.surrogate), BLOCK=BLOCK,
    )  # fmt: skip


def reversible_forward(x: Tensor, p: _Floats, dim: int) -> tuple[Tensor, Tensor]:
    """See reference.reversible_forward."""
    return _run_forward(x, None, p, dim)


def reversible_forward_stored(x: Tensor, p: _Floats, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.reversible_forward_stored."""
    m = torch.empty_like(x)
    return *_run_forward(x, m, p, dim), m


def reversible_reconstruct(y: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_reconstruct."""
    x = torch.empty_like(y)
    _run_back(y, None, None, None, x, p, dim)
    return x


def reversible_backward_(y: Tensor, g: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_backward_."""
    x = torch.empty_like(y)
    _run_back(y, None, g, g, x, p, dim)
    return x


def reversible_backward(y: Tensor, g: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_backward."""
    g_x = torch.empty_like(g)
    _run_back(y, None, g, g_x, None, p, dim)
    return g_x


def reversible_stored_backward_(y: Tensor, m: Tensor, g: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_stored_backward_."""
    x = torch.empty_like(y)
    _run_back(y, m, g, g, x, p, dim)
    return x


def reversible_stored_backward(y: Tensor, m: Tensor, g: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_stored_backward."""
    g_x = torch.empty_like(g)
    _run_back(y, m, g, g_x, None, p, dim)
    return g_x
