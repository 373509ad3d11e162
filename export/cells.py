"""Neurons as deployment needs them: one time step, explicit state, no surrogate, no autograd function.

`Cell` is every integrate-and-fire kind (IF, LIF, PLIF; hard and soft reset): `NeuronParams` holds all that tells them
apart. `ReversibleCell` is the neuron of arXiv 2308.08649. Both follow `revedge.kernels` operation by operation, so in
PyTorch they round as training does. Everything here compiles under TorchScript; `Final` values are fixed by it.

A cell takes a list of tensors and gives one back, so that all neurons have one signature, with neurons or without:

    mode PLAIN   takes [v]          gives [v']         what is shipped
    mode WATCH   takes [v]          gives [v', h, s]   the same step, showing membrane before the reset, and spikes
    mode FORCE   takes [v, s_in]    gives [v', h, s]   s is h's answer, but what goes on uses s_in: for parity checks

In mode FORCE what a branch adds to a stream is given, too (`StreamCell`).
"""

from typing import Final

import torch
from torch import Tensor, nn

from revedge.kernels.params import NeuronParams, ReversibleParams

PLAIN, WATCH, FORCE = 0, 1, 2


class NoCell(nn.Module):
    """Stands where a unit has no neuron."""

    takes: Final[int]

    def __init__(self) -> None:
        super().__init__()
        self.takes = 0

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return everything as it came."""
        return x, carry


class StreamCell(nn.Module):
    """Behind the rounding of a branch, in mode FORCE: takes [given], gives [x], and hands on what was given."""

    takes: Final[int]

    def __init__(self) -> None:
        super().__init__()
        self.takes = 1

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Let what comes behind read the given values."""
        return carry[0], [x]


class Cell(nn.Module):
    """One step of an integrate-and-fire neuron; ``x``, ``v`` and the spikes are ``[B, ...]``.

    Args:
        params: decay, gain, bias, threshold and reset; a learned leak is a plain number by now.
        mode: PLAIN, WATCH or FORCE, see above.
        leak_bits: round the leaked membrane to multiples of ``2**-leak_bits``, half to even; None does not.
        limit: keep the membrane before the reset within plus and minus this; None does not. Both are for exact forms.
    """

    takes: Final[int]
    shows: Final[bool]
    forced: Final[bool]
    hard: Final[bool]
    scaled: Final[bool]
    biased: Final[bool]
    leaky: Final[bool]
    decay: Final[float]
    gain: Final[float]
    bias: Final[float]
    v_threshold: Final[float]
    v_reset: Final[float]
    rounded: Final[bool]
    leak_up: Final[float]
    leak_down: Final[float]
    limited: Final[bool]
    limit: Final[float]
    late: Final[bool]
    lost: Final[float]

    def __init__(
        self,
        params: NeuronParams,
        mode: int = PLAIN,
        *,
        leak_bits: int | None = None,
        limit: float | None = None,
    ) -> None:
        super().__init__()
        self.rounded = leak_bits is not None
        bits = 0 if leak_bits is None else leak_bits
        # A power of two times the leak is one factor, and both products of a value on its grid are exact.
        self.leak_up = float(params.decay) * 2.0**bits
        self.leak_down = 2.0**-bits
        self.limited = limit is not None
        self.limit = 0.0 if limit is None else float(limit)
        self.late = params.late is not None
        self.lost = 0.0 if params.late is None else float(params.late)
        self.takes = 2 if mode == FORCE else 1
        self.shows = mode != PLAIN
        self.forced = mode == FORCE
        self.hard = params.v_reset is not None
        self.leaky = params.decay != 1.0
        self.scaled = params.gain != 1.0
        self.biased = params.bias != 0.0
        self.decay = float(params.decay)
        self.gain = float(params.gain)
        self.bias = float(params.bias)
        self.v_threshold = float(params.v_threshold)
        self.v_reset = float(params.v_initial)

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Charge, fire, reset."""
        h = carry[0]
        if self.rounded:
            h = torch.round(h * self.leak_up) * self.leak_down
        elif self.leaky:
            h = h * self.decay
        if self.scaled:
            x = x * self.gain
        h = h + x
        if self.biased:
            h = h + self.bias
        if self.late:  # what the spike of the step before takes off
            h = torch.where(carry[0] > self.lost, h - self.lost, h)
        if self.limited:
            h = torch.clamp(h, -self.limit, self.limit)
        fired = h >= self.v_threshold
        s = fired.to(h.dtype)
        out = s
        if self.forced:
            out = carry[1]
            fired = out > 0.5
        v = h - self.v_threshold
        v = h.masked_fill(fired, self.v_reset) if self.hard else torch.where(fired, v, h)
        if self.late:
            v = h
        if self.shows:
            return out, [v, h, s]
        return out, [v]


class ReversibleCell(nn.Module):
    """One step of the reversible neuron, equations 1-6 for ``groups`` groups; ``x``, ``v`` and Y are ``[B, ...]``.

    All groups but the last integrate their own input, the last one integrates Y of the group before it.

    Args:
        params: groups, tau, alpha, beta, threshold, reset.
        dim: the dimension of ``[B, ...]`` that the groups divide, positive.
        size: length of that dimension; ``groups`` divides it.
        mode: PLAIN, WATCH or FORCE.
    """

    takes: Final[int]
    shows: Final[bool]
    forced: Final[bool]
    dim: Final[int]
    width: Final[int]
    rest: Final[int]
    leak: Final[float]
    alpha: Final[float]
    beta: Final[float]
    v_threshold: Final[float]
    v_reset: Final[float]

    def __init__(self, params: ReversibleParams, dim: int, size: int, mode: int = PLAIN) -> None:
        super().__init__()
        self.takes = 2 if mode == FORCE else 1
        self.shows = mode != PLAIN
        self.forced = mode == FORCE
        self.dim = dim
        self.width = size // params.groups
        self.rest = size - self.width
        self.leak = 1.0 / params.tau
        self.alpha = float(params.alpha)
        self.beta = float(params.beta)
        self.v_threshold = float(params.v_threshold)
        self.v_reset = float(params.v_reset)

    def forward(self, x: Tensor, carry: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Groups 1 .. n-1 at once, then the last one, which needs Y of the group before it."""
        v = carry[0]
        v_first = v.narrow(self.dim, 0, self.rest)
        v_last = v.narrow(self.dim, self.rest, self.width)
        m_first = v_first + (x.narrow(self.dim, 0, self.rest) - v_first) * self.leak
        s_first = (m_first >= self.v_threshold).to(x.dtype)
        s_used = s_first
        if self.forced:
            s_used = carry[1].narrow(self.dim, 0, self.rest)
        y_first = s_used + x.narrow(self.dim, self.width, self.rest) * self.beta
        drive = y_first.narrow(self.dim, self.rest - self.width, self.width)
        m_last = v_last + (drive - v_last) * self.leak
        s_last = (m_last >= self.v_threshold).to(x.dtype)
        s_used = s_last
        if self.forced:
            s_used = carry[1].narrow(self.dim, self.rest, self.width)
        y_last = s_used + x.narrow(self.dim, 0, self.width) * self.beta
        y = torch.cat([y_first, y_last], self.dim)
        m = torch.cat([m_first, m_last], self.dim)
        v = ((1.0 - y) * m + y * self.v_reset) + v * self.alpha
        if self.shows:
            return y, [v, m, torch.cat([s_first, s_last], self.dim)]
        return y, [v]
