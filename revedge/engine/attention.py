"""Attention between spikes: no softmax, no parameters, and sums of integers, so that the order of the products is free.

Shapes: N planes (a sample at a time step), C channels, h heads of width d = C / h, L = H * W tokens.
"""

import torch
from torch import Tensor, nn

from revedge.engine.autocast import full_precision
from revedge.errors import UsageError


class SpikeAttention(nn.Module):
    """``(q k^T) v * scale`` per head: ``[N, 3C, H, W] -> [N, C, H, W]``.

    The input holds q, k and v one after the other, each with its heads one after the other; every pixel is a token.
    On spikes every product is 0 or 1 and every sum an integer below 2**24, so ``(q k^T) v`` and ``q (k^T v)`` are the
    same bits; the second is taken where a head is no wider than there are tokens, because it is cheaper. Under autocast
    it stays in float32: bfloat16 counts to 256 only.

    Args:
        heads: divides C.
        scale: a power of two keeps the result exact.

    Time: ``2 N C min(L, d) L`` multiply-adds.
    Source: Zhou et al., "Spikformer" (ICLR 2023), spiking self-attention; the scale is that of its code.
    """

    def __init__(self, heads: int, scale: float = 0.125) -> None:
        super().__init__()
        if heads < 1:
            raise UsageError(f"heads={heads} is not a number of heads; use 1 or more")
        self.heads = int(heads)
        self.scale = float(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values."""
        q, k, v = self._heads_of(x)
        with full_precision(x.device.type):
            out = (v @ k.mT) @ q if _by_width(q) else v @ (k.mT @ q)
        return (out * self.scale).reshape(x.shape[0], x.shape[1] // 3, *x.shape[2:])

    def vjp(self, x: Tensor, g: Tensor) -> Tensor:
        """Return the gradient of ``x`` from ``g``, that of the output; neither is written to.

        Memory: two tensors of the size of ``x``, and one product per head.
        """
        q, k, v = self._heads_of(x)
        g = (g * self.scale).reshape(q.shape)
        with full_precision(x.device.type):
            if _by_width(q):
                g_inner = g @ q.mT  # of v k^T
                g_q, g_k, g_v = (k @ v.mT) @ g, g_inner.mT @ v, g_inner @ k
            else:
                g_inner = v.mT @ g  # of k^T q
                g_q, g_k, g_v = k @ g_inner, q @ g_inner.mT, g @ (q.mT @ k)
        return torch.stack((g_q, g_k, g_v), 1).reshape(x.shape)

    def extra_repr(self) -> str:
        """Return what print shows."""
        return f"heads={self.heads}, scale={self.scale}"

    def _heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v ``[N, h, d, L]``, views where ``x`` is contiguous."""
        channels = x.shape[1]
        if channels % (3 * self.heads):
            raise UsageError(
                f"{channels} channels do not hold q, k and v of {self.heads} heads; "
                f"use a multiple of {3 * self.heads}"
            )
        width, tokens = channels // (3 * self.heads), x.shape[2] * x.shape[3]
        parts = x.reshape(x.shape[0], 3, self.heads, width, tokens)
        return parts[:, 0], parts[:, 1], parts[:, 2]


def _by_width(q: Tensor) -> bool:
    """Whether products of size d x d are cheaper than those of size L x L."""
    return q.shape[-2] <= q.shape[-1]
