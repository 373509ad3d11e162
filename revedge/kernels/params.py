"""What a neuron kernel needs to know, as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

# The position in this tuple is the number that the C code switches on.
SURROGATES = ("atan", "sigmoid", "rectangle", "triangle")
# How many numbers of a neuron the C and Triton code takes.
COMPILED_FLOATS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronParams:
    """One integrate-and-fire neuron; every number is rounded to float32 before use.

    charge   h[t] = decay * v[t-1] + gain * x[t] + bias
    fire     s[t] = 1 if h[t] >= v_threshold else 0
    reset    v[t] = v_reset if s[t] else h[t]          (hard, ``v_reset`` a number)
             v[t] = h[t] - s[t] * v_threshold          (soft, ``v_reset`` None)

    With ``late``, snnTorch's reset by subtraction, a spike takes that much off the next step's membrane instead, behind
    the leak; ``v_reset`` is None and the reset is no part of the gradient:

    charge   h[t] = decay * v[t-1] + gain * x[t] + bias - (late if v[t-1] >= v_threshold else 0);  v[t] = h[t]
    """

    decay: float
    gain: float
    bias: float = 0.0
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    surrogate: str = "atan"
    alpha: float = 2.0
    # How h depends on a learnable leak k: dh/dk = leak_x * x + leak_v * v + leak_1;
    # all zero when the leak is fixed.
    leak_x: float = 0.0
    leak_v: float = 0.0
    leak_1: float = 0.0
    late: float | None = None

    @property
    def learns_leak(self) -> bool:
        """Whether the backward kernel must return the gradient of the leak."""
        return bool(self.leak_x or self.leak_v or self.leak_1)

    @property
    def v_initial(self) -> float:
        """The membrane where none is given: ``v_reset``, or 0 with the soft reset."""
        return 0.0 if self.v_reset is None else self.v_reset

    def as_floats(self) -> list[float]:
        """Return the numbers in the order in which operators and C code take them."""
        return [
            self.decay,
            self.gain,
            self.bias + 0.0,  # never -0.0, so that h never is
            self.v_threshold,
            self.v_initial,
            0.0 if self.v_reset is None else 1.0,
            float(self.detach_reset),
            float(SURROGATES.index(self.surrogate)),
            self.alpha,
            self.leak_x,
            self.leak_v,
            self.leak_1,
            # One number more than compiled code knows: `_dispatch` gives it to the reference.
            *(() if self.late is None else (self.late,)),
        ]

    @classmethod
    def from_floats(cls, p: Sequence[float]) -> "NeuronParams":
        """Undo :meth:`as_floats`."""
        return cls(
            decay=p[0],
            gain=p[1],
            bias=p[2],
            v_threshold=p[3],
            v_reset=p[4] if p[5] else None,
            detach_reset=bool(p[6]),
            surrogate=SURROGATES[int(p[7])],
            alpha=p[8],
            leak_x=p[9],
            leak_v=p[10],
            leak_1=p[11],
            late=p[12] if len(p) > COMPILED_FLOATS else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReversibleParams:
    """The reversible neuron of arXiv 2308.08649, eq. 1-6, with ``groups`` groups; a = 1/tau.

    D_k = X_k for k < n, D_n = Y_{n-1};  M_k = V_k + a (D_k - V_k);
    Y_k = H(M_k - v_threshold) + beta X_{k+1 mod n};
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

    def as_floats(self) -> list[float]:
        """Return the numbers in the order in which operators and C code take them."""
        return [
            float(self.groups),
            self.tau,
            self.alpha,
            self.beta,
            self.v_threshold,
            self.v_reset,
            float(self.detach_reset),
            float(SURROGATES.index(self.surrogate)),
            self.surrogate_alpha,
        ]

    @classmethod
    def from_floats(cls, p: Sequence[float]) -> "ReversibleParams":
        """Undo :meth:`as_floats`."""
        return cls(
            groups=int(p[0]),
            tau=p[1],
            alpha=p[2],
            beta=p[3],
            v_threshold=p[4],
            v_reset=p[5],
            detach_reset=bool(p[6]),
            surrogate=SURROGATES[int(p[7])],
            surrogate_alpha=p[8],
        )
