"""One step of each neuron as a pure function: the definition that everything else is tested on.

Shapes: x, v, h, s [B, ...], one time step. ``*_step`` are differentiable (surrogate gradients);
``*_step_inference`` are free of autograd functions and of Python objects, so TorchScript and the
ONNX exporters take them as they are.
"""

import torch
from torch import Tensor

from revedge.kernels.params import NeuronParams, ReversibleParams
from revedge.neurons.surrogate import Surrogate, spike


def charge(
    x: Tensor, v: Tensor, decay: float | Tensor, gain: float | Tensor, bias: float | Tensor
) -> Tensor:
    """Return h = decay * v + gain * x + bias."""
    return (v * decay + x * gain) + bias


def reset(h: Tensor, s: Tensor, v_threshold: float, v_reset: float | None) -> Tensor:
    """Return the membrane after the spikes ``s``: hard to ``v_reset``, or soft if None."""
    if v_reset is None:
        return h - s * v_threshold
    return h * (1.0 - s) + s * v_reset


def fire_and_reset(
    h: Tensor,
    v_threshold: float,
    v_reset: float | None,
    detach_reset: bool,
    surrogate: Surrogate,
) -> tuple[Tensor, Tensor]:
    """Return (spikes, membrane after the reset), differentiable."""
    s = spike(h, v_threshold, surrogate)
    return s, reset(h, s.detach() if detach_reset else s, v_threshold, v_reset)


def neuron_step(x: Tensor, v: Tensor, p: NeuronParams) -> tuple[Tensor, Tensor]:
    """Return (s, v) after one step of the neuron ``p``, differentiable in x and v."""
    h = charge(x, v, p.decay, p.gain, p.bias + 0.0)
    surrogate = Surrogate(p.surrogate, p.alpha)
    return fire_and_reset(h, p.v_threshold, p.v_reset, p.detach_reset, surrogate)


def neuron_step_inference(
    x: Tensor,
    v: Tensor,
    decay: float,
    gain: float,
    bias: float,
    v_threshold: float,
    v_reset: float | None,
) -> tuple[Tensor, Tensor]:
    """Return (s, v) after one step; same spikes as :func:`neuron_step`, scriptable."""
    h = v * decay + x * gain
    if bias != 0.0:
        h = h + bias
    s = (h >= v_threshold).to(h.dtype)
    if v_reset is None:
        return s, h - s * v_threshold
    v = h * (1.0 - s)
    if v_reset != 0.0:
        v = v + s * v_reset
    return s, v


def reversible_step(
    x: Tensor, v: Tensor, rp: ReversibleParams, dim: int = -1
) -> tuple[Tensor, Tensor]:
    """Return (Y, V') after one step of the reversible neuron (arXiv 2308.08649, eq. 1-6).

    Args:
        x, v: [B, ...]; ``dim`` is the dimension that the groups split. Counted without time, so a
            negative ``dim`` is the same here and for a whole sequence.
        rp: the neuron; differentiable in x and v.
    """
    surrogate = Surrogate(rp.surrogate, rp.surrogate_alpha)
    xs, vs = x.chunk(rp.groups, dim), v.chunk(rp.groups, dim)
    n = rp.groups
    ys: list[Tensor] = []
    states: list[Tensor] = []
    for k in range(n):
        drive = xs[k] if k < n - 1 else ys[n - 2]
        m = vs[k] + (drive - vs[k]) * (1.0 / rp.tau)
        y = spike(m, rp.v_threshold, surrogate) + xs[(k + 1) % n] * rp.beta
        y_reset = y.detach() if rp.detach_reset else y
        states.append(((1.0 - y_reset) * m + y_reset * rp.v_reset) + vs[k] * rp.alpha)
        ys.append(y)
    return torch.cat(ys, dim), torch.cat(states, dim)


def reversible_step_inference(
    x: Tensor,
    v: Tensor,
    groups: int,
    inverse_tau: float,
    alpha: float,
    beta: float,
    v_threshold: float,
    v_reset: float,
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Return (Y, V') after one step; same values as :func:`reversible_step`, scriptable."""
    xs, vs = x.chunk(groups, dim), v.chunk(groups, dim)
    ys: list[Tensor] = []
    states: list[Tensor] = []
    for k in range(groups):
        drive = xs[k]
        if k == groups - 1:
            drive = ys[groups - 2]
        m = vs[k] + (drive - vs[k]) * inverse_tau
        y = (m >= v_threshold).to(m.dtype) + xs[(k + 1) % groups] * beta
        states.append(((1.0 - y) * m + y * v_reset) + vs[k] * alpha)
        ys.append(y)
    return torch.cat(ys, dim), torch.cat(states, dim)
