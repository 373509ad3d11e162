"""Comparison of bits, and the neurons to compare."""

import torch
from torch import Tensor

from revedge.kernels import NeuronParams


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Compare bit patterns: +0.0 and -0.0 differ, equal NaN are equal."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype == torch.float32:
        actual, expected = (
            actual.contiguous().view(torch.int32),
            expected.contiguous().view(torch.int32),
        )
    differing = int((actual != expected).sum())
    assert differing == 0, f"{differing} of {actual.numel()} values differ"


def neuron_variants() -> list[NeuronParams]:
    """Every surrogate, reset, detachment and kind of leak."""
    variants = []
    for surrogate, alpha in (
        ("atan", 2.0),
        ("sigmoid", 4.0),
        ("rectangle", 1.5),
        ("triangle", 0.7),
    ):
        for v_reset in (0.0, -0.3, None):
            for detach in (True, False):
                common = {
                    "v_reset": v_reset,
                    "detach_reset": detach,
                    "surrogate": surrogate,
                    "alpha": alpha,
                    "v_threshold": 0.9,
                }
                k, rest = 1 / 1.7, v_reset or 0.0
                variants += [
                    NeuronParams(decay=1.0, gain=1.0, **common),
                    NeuronParams(decay=1 - k, gain=k, bias=k * rest, **common),
                    NeuronParams(
                        decay=1 - k,
                        gain=1.0,
                        bias=k * rest,
                        leak_v=-1.0,
                        leak_1=rest,
                        **common,
                    ),
                    NeuronParams(
                        decay=1 - k,
                        gain=k,
                        bias=k * rest,
                        leak_x=1.0,
                        leak_v=-1.0,
                        leak_1=rest,
                        **common,
                    ),
                ]
    return variants


def name_of(p: NeuronParams) -> str:
    """Return a short test id."""
    reset = "soft" if p.v_reset is None else f"hard{p.v_reset:g}"
    leak = ("learned" if p.learns_leak else "fixed") + ("-decayed" if p.gain != 1 else "")
    return f"{p.surrogate}-{reset}-{'detached' if p.detach_reset else 'through'}-{leak}"
