"""Integrate-and-fire over a whole sequence; the definition is reference/neuron.py.

x, s, g: [T, N]; v0, v, g_vT, g_v0, g_leak: [N]. A program owns a block of neurons and walks through
time. Steps of the input are STRIDE apart: N, or 0 for one step that is repeated. Behind a batch norm
the input is y [T, B, C, S], scaled on the way in (AFFINE); N = B C S. Its channels may be a slab:
bits and g then are [T, B, ALL, S], and channel 0 of y is their channel FIRST.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from revedge.kernels._dispatch import repeats
from revedge.kernels._shapes import check_shape
from revedge.kernels.params import SURROGATES, NeuronParams
from revedge.kernels.reference.rounding import to_float32
from revedge.kernels.triton._launch import BLOCK, launch, slabs
from revedge.kernels.triton.bits import bytes_of, merge_bits
from revedge.kernels.triton.surrogates import surrogate_at, surrogate_floats

_Floats = Sequence[float]
_Affine = tuple[Tensor, Tensor] | None
_FLOATS, _BYTES, _BITS = 0, 1, 2  # how spikes leave


@triton.jit
def _scale_of(scale, shift, n, N, C, S):
    """Return the scale and shift of neurons ``n``."""
    c = (n // S) % C
    return tl.load(scale + c, mask=n < N, other=0.0), tl.load(shift + c, mask=n < N, other=0.0)


@triton.jit
def _start(v0, v_reset, n, N, HAS_V0: tl.constexpr, BLOCK: tl.constexpr):
    if HAS_V0:
        v = tl.load(v0 + n, mask=n < N, other=0.0)
    else:
        v = tl.full([BLOCK], v_reset, tl.float32)
    return v


@triton.jit
def _reset(h, threshold, v_reset, HARD: tl.constexpr):
    if HARD:
        v = tl.where(h >= threshold, v_reset, h)
    else:
        v = tl.where(h >= threshold, h - threshold, h)
    return v


@triton.jit
def _in_slab(n, C, S, ALL, FIRST):
    """Return where neurons ``n`` of [B, C, S] are in [B, ALL, S]."""
    return (n // (C * S)) * (ALL * S) + FIRST * S + n % (C * S)


@triton.jit
def _forward(
    y, scale, shift, v0, s, v_last, T, N, STRIDE, C, S, ALL, FIRST, STEP,
    decay, gain, bias, threshold, v_reset,
    AFFINE: tl.constexpr, HAS_V0: tl.constexpr, HARD: tl.constexpr, OUT: tl.constexpr,
    STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """OUT: 0 floats, 1 bytes, 2 bits, whose steps are STEP neurons apart."""
    first = tl.program_id(0) * BLOCK
    n = first + tl.arange(0, BLOCK)
    there = n < N
    a, b = 1.0, 0.0
    if AFFINE:
        a, b = _scale_of(scale, shift, n, N, C, S)
    # Eight neurons in a row share a byte, and no byte belongs to two programs, steps or slabs.
    group = first + tl.arange(0, BLOCK // 8) * 8
    byte = _in_slab(group, C, S, ALL, FIRST) // 8
    v = _start(v0, v_reset, n, N, HAS_V0, BLOCK)
    for t in range(T):
        x = tl.load(y + t * STRIDE + n, mask=there, other=0.0)
        if AFFINE:
            x = x * a + b
        h = (v * decay + x * gain) + bias
        fired = h >= threshold
        if OUT == 0:
            tl.store(s + t * N + n, fired.to(tl.float32), mask=there)
        elif OUT == 1:
            tl.store(s + t * N + n, fired.to(tl.uint8), mask=there)
        else:
            packed = bytes_of(fired, BLOCK // 8).to(tl.uint8)
            tl.store(s + t * (STEP // 8) + byte, packed, mask=group < N)
        v = _reset(h, threshold, v_reset, HARD)
    if STATE:
        tl.store(v_last + n, v, mask=there)


@triton.jit
def _backward(
    y, scale, shift, v0, g_s, g_x, g_vT, g_v0, leak_0, g_leak, scratch, T, N, STRIDE, C, S, ALL, FIRST,
    STEP, decay, gain, bias, threshold, v_reset, alpha, slope, height, half, leak_x, leak_v, leak_1,
    AFFINE: tl.constexpr, HAS_V0: tl.constexpr, HAS_GV: tl.constexpr, HAS_LEAK: tl.constexpr,
    HARD: tl.constexpr, DETACH: tl.constexpr, KIND: tl.constexpr, LEARNS: tl.constexpr, STATE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Steps of g_s and g_x are STEP neurons apart."""
    lane = tl.arange(0, BLOCK)
    charged = scratch + tl.program_id(0) * T * BLOCK + lane  # h of every step
    for block in range(tl.program_id(0), tl.cdiv(N, BLOCK), tl.num_programs(0)):
        # Barriers: another thread may have read, or have written, what this one takes.
        tl.debug_barrier()
        n = block * BLOCK + lane
        there = n < N
        at = _in_slab(n, C, S, ALL, FIRST)
        a, b = 1.0, 0.0
        if AFFINE:
            a, b = _scale_of(scale, shift, n, N, C, S)
        v = _start(v0, v_reset, n, N, HAS_V0, BLOCK)
        for t in range(T):
            x = tl.load(y + t * STRIDE + n, mask=there, other=0.0)
            if AFFINE:
                x = x * a + b
            h = (v * decay + x * gain) + bias
            tl.store(charged + t * BLOCK, h)
            v = _reset(h, threshold, v_reset, HARD)
        tl.debug_barrier()
        if HAS_GV:
            g_v = tl.load(g_vT + n, mask=there, other=0.0)
        else:
            g_v = tl.zeros([BLOCK], tl.float32)
        if HAS_LEAK:
            leak = tl.load(leak_0 + n, mask=there, other=0.0)
        else:
            leak = tl.zeros([BLOCK], tl.float32)
        for back in range(T):
            t = T - 1 - back
            h = tl.load(charged + t * BLOCK)
            g = tl.load(g_s + t * STEP + at, mask=there, other=0.0)
            if not DETACH:
                if HARD:
                    g = g + g_v * (v_reset - h)
                else:
                    g = g - g_v * threshold
            through = g_v
            if HARD:
                through = tl.where(h >= threshold, 0.0, g_v)
            g_h = g * surrogate_at(h - threshold, alpha, slope, height, half, KIND) + through
            if LEARNS:
                x = tl.load(y + t * STRIDE + n, mask=there, other=0.0)
                if AFFINE:
                    x = x * a + b
                before = tl.load(charged + tl.maximum(t - 1, 0) * BLOCK)
                before = _reset(before, threshold, v_reset, HARD)
                before = tl.where(t > 0, before, _start(v0, v_reset, n, N, HAS_V0, BLOCK))
                leak = leak + g_h * ((x * leak_x + before * leak_v) + leak_1)
            tl.store(g_x + t * STEP + at, g_h * gain, mask=there)
            g_v = g_h * decay
        if STATE:
            tl.store(g_v0 + n, g_v, mask=there)
        if LEARNS:
            tl.store(g_leak + n, leak, mask=there)


def spikes_like(x: Tensor, pack: bool) -> Tensor:
    """Return an empty tensor for the spikes of ``x``, or for their bits."""
    return x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8) if pack else x.new_empty(x.shape)


def forward(
    y: Tensor,
    affine: _Affine,
    v0: Tensor | None,
    s: Tensor,
    p: _Floats,
    *,
    pack: bool,
    state: bool,
    slab: tuple[int, int] | None = None,
) -> Tensor:
    """Write the spikes of ``y``, or their bits, to ``s``; return the last membrane, or nothing.

    Args:
        y: [T, ...], or [T, B, C, ...] with ``affine``, the scale and shift of the norm.
        affine, v0, p, pack, state: as the operators have them.
        s: written; with ``slab``, (all channels, the first one of y), only there.
        slab: of bits only.
    """
    check_shape("v0", v0, y.shape[1:])
    q, sizes = NeuronParams.from_floats(p), _Sizes(y, affine, slab)
    v = y.new_empty(y.shape[1:] if state else 0)
    # Where bytes would be shared between steps or slabs, one byte a spike first.
    out = _FLOATS if not pack else _BITS if sizes.whole_bytes() else _BYTES
    ones = y.new_empty(y.numel(), dtype=torch.uint8) if out == _BYTES else s
    scale, shift = affine or (y, y)
    launch(
        _forward, triton.cdiv(sizes.neurons, BLOCK), y, scale, shift, y if v0 is None else v0, ones,
        v, *sizes.numbers(), *_membrane_floats(q), AFFINE=affine is not None,
        HAS_V0=v0 is not None, HARD=q.v_reset is not None, OUT=out, STATE=state, BLOCK=BLOCK,
    )  # fmt: skip
    if out == _BYTES:
        planes = y.numel() // max(1, sizes.channels * sizes.size)
        merge_bits(ones, s, (planes, sizes.channels, sizes.size), (sizes.all, sizes.first))
    return v


def backward(
    y: Tensor,
    affine: _Affine,
    v0: Tensor | None,
    g: Tensor,
    g_x: Tensor,
    g_vT: Tensor | None,
    p: _Floats,
    *,
    state: bool,
    first: int = 0,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of the neuron's input to ``g_x``, which may be ``g``; return (g_v0, g_leak).

    With ``affine`` g and g_x may have more channels than y, which begins at channel ``first``.
    """
    for name, tensor in (("v0", v0), ("g_vT", g_vT), ("leak", leak)):
        check_shape(name, tensor, y.shape[1:])
    q = NeuronParams.from_floats(p)
    sizes = _Sizes(y, affine, (g.shape[2], first) if affine else None)
    if affine is None:
        check_shape("g_s", g, y.shape)
    g_v0 = y.new_empty(y.shape[1:] if state else 0)
    g_leak = y.new_empty(y.shape[1:] if q.learns_leak else 0)
    scratch, programs = slabs(y, sizes.neurons, sizes.steps)
    scale, shift = affine or (y, y)
    launch(
        _backward, programs, y, scale, shift, y if v0 is None else v0, g, g_x,
        y if g_vT is None else g_vT, g_v0, y if leak is None else leak, g_leak, scratch, *sizes.numbers(),
        *_membrane_floats(q), *surrogate_floats(q.alpha),
        *map(to_float32, (q.leak_x, q.leak_v, q.leak_1)),
        AFFINE=affine is not None, HAS_V0=v0 is not None, HAS_GV=g_vT is not None,
        HAS_LEAK=leak is not None, HARD=q.v_reset is not None, DETACH=q.detach_reset,
        KIND=SURROGATES.index(q.surrogate), LEARNS=q.learns_leak, STATE=state, BLOCK=BLOCK,
    )  # fmt: skip
    return g_v0, g_leak


class _Sizes:
    """How the neurons of y lie: [T, N], or [T, B, C, S] as a slab of [T, B, ALL, S]."""

    def __init__(self, y: Tensor, affine: _Affine, slab: tuple[int, int] | None) -> None:
        self.steps, self.neurons = y.shape[0], math.prod(y.shape[1:])
        self.stride = 0 if repeats(y) else self.neurons
        self.channels, self.size = 1, self.neurons
        if affine is not None:
            for name, tensor in zip(("scale", "shift"), affine, strict=True):
                check_shape(name, tensor, y.shape[2:3])
            self.channels, self.size = y.shape[2], math.prod(y.shape[3:])
        self.all, self.first = slab or (self.channels, 0)
        batch = self.neurons // max(1, self.channels * self.size)
        self.step = batch * self.all * self.size

    def whole_bytes(self) -> bool:
        """Whether every sample of the slab begins and ends at a byte."""
        ends = (self.channels, self.all, self.first)
        return all(end * self.size % 8 == 0 for end in ends) and self.neurons % 8 == 0

    def numbers(self) -> tuple[int, ...]:
        """Return T, N, STRIDE, C, S, ALL, FIRST and STEP."""
        around = (self.channels, self.size, self.all, self.first, self.step)
        return self.steps, self.neurons, self.stride, *around


def _membrane_floats(q: NeuronParams) -> list[float]:
    return [
        to_float32(value) for value in (q.decay, q.gain, q.bias + 0.0, q.v_threshold, q.v_initial)
    ]


def neuron_forward(
    x: Tensor, v0: Tensor | None, p: _Floats, pack: bool, state: bool
) -> tuple[Tensor, Tensor]:
    """See reference.neuron_forward."""
    s = spikes_like(x, pack)
    return s, forward(x, None, v0, s, p, pack=pack, state=state)


def neuron_backward_(
    x: Tensor,
    v0: Tensor | None,
    g: Tensor,
    g_vT: Tensor | None,
    p: _Floats,
    state: bool,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See reference.neuron_backward_."""
    return backward(x, None, v0, g, g, g_vT, p, state=state, leak=leak)


def neuron_backward(
    x: Tensor, v0: Tensor | None, g: Tensor, g_vT: Tensor | None, p: _Floats
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.neuron_backward."""
    g_x = x.new_empty(x.shape)
    return g_x, *backward(x, None, v0, g, g_x, g_vT, p, state=True)
