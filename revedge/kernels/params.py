"""What a neuron kernel needs to know, as plain numbers."""

from dataclasses import dataclass

SURROGATES = ("atan", "sigmoid", "rectangle", "triangle")  # the position is the number that the C code switches on


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronParams:
    """One integrate-and-fire neuron; every number is rounded to float32 before use.

    charge   h[t] = decay * v[t-1] + gain * x[t] + bias
    fire     s[t] = 1 if h[t] >= v_threshold else 0
    reset    v[t] = v_reset if s[t] else h[t]          (hard, ``v_reset`` a number)
             v[t] = h[t] - s[t] * v_threshold          (soft, ``v_reset`` None)
    """

    decay: float
    gain: float
    bias: float = 0.0
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    surrogate: str = "atan"
    alpha: float = 2.0
    # How h depends on a learnable leak k: dh/dk = leak_x * x + leak_v * v + leak_1; all zero when the leak is fixed.
    leak_x: float = 0.0
    leak_v: float = 0.0
    leak_1: float = 0.0

    @property
    def learns_leak(self) -> bool:
        """Whether the backward kernel must return the gradient of the leak."""
        return bool(self.leak_x or self.leak_v or self.leak_1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReversibleParams:
    """The reversible neuron of arXiv 2308.08649, equations 1-6, with ``groups`` groups; a = 1/tau.

    D_k = X_k for k < n, D_n = Y_{n-1};  M_k = V_k + a (D_k - V_k);  Y_k = H(M_k - v_threshold) + beta X_{k+1 mod n};
    V_k' = (1 - Y_k) M_k + Y_k v_reset + alpha V_k.
    """

    groups: int = 2
    tau: float = 2.0
    alpha: float = 0.1
    beta: float = 1.0
    v_threshold: float = 1.0
    v_reset: float = 0.0
    detach_reset: bool = False
    surrogate: str = "atan"
    surrogate_alpha: float = 2.0
