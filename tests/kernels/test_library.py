"""Loading, switching off, shapes without values, and a light import."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from kernel_checks import assert_same_bits

from revedge import kernels
from revedge.kernels import NeuronParams, ReversibleParams


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return result.stdout


IMPORT_COST = """
import json, sys, torch
def rss():
    return int(open('/proc/self/statm').read().split()[1]) * 4096
before = rss()
import revedge.kernels
import revedge.neurons
print(json.dumps([rss() - before, [m for m in ('sympy', 'torch._dynamo') if m in sys.modules]]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_import_is_light() -> None:
    """Kernels and neurons add less than 5 MB to torch, and neither sympy nor torch._dynamo."""
    added_bytes, heavy = json.loads(run_python(IMPORT_COST))
    assert heavy == []
    assert added_bytes < 5_000_000


def test_switched_off() -> None:
    """REVEDGE_NO_NATIVE=1 takes the reference, and says why."""
    code = "import revedge.kernels, json; print(json.dumps(revedge.kernels.native_status()))"
    status = json.loads(run_python(code, REVEDGE_NO_NATIVE="1"))
    assert status["loaded"] is False
    assert "REVEDGE_NO_NATIVE" in status["reason"]


def every_operator(device: str) -> list[torch.Tensor]:
    torch.manual_seed(3)
    y = torch.randn(3, 2, 4, 5, 5).to(device)
    g = torch.randn(3, 2, 4, 5, 5).to(device)
    weight, bias = torch.ones(4).to(device), torch.zeros(4).to(device)
    p = NeuronParams(decay=0.5, gain=0.5, leak_v=-1.0)
    rp = ReversibleParams()
    y_MC, g_MC = y.flatten(0, 1), g.flatten(0, 1)
    mean, var = kernels.channel_stats(y_MC)
    scale, shift, inv_std = kernels.norm_affine(mean, var, weight, bias, 1e-5)
    s, v = kernels.neuron_forward(y, None, p)
    apart = kernels.neuron_backward(y, None, g, None, p)
    bits, v_2 = kernels.norm_neuron_forward(y, scale, shift, None, p, pack=True)
    reversible = kernels.reversible_forward(y, rp, 2)
    y_stored, v_stored, m_stored = kernels.reversible_forward_stored(y, rp, 2)
    sums = kernels.ChannelSums()
    sums.add(y_MC)
    results = [
        mean,
        var,
        s,
        v,
        *(a for a in apart if a is not None),
        bits,
        v_2,
        kernels.unpack_bits(bits, s.shape),
        kernels.pack_bits(s),
        kernels.norm_forward(y_MC, scale, shift),
        kernels.grid_add(None, y_MC, scale, shift),
        kernels.grid_round(y),
        reversible,
        kernels.reversible_reconstruct(reversible, rp, 2),
        kernels.reversible_backward_(reversible, g.clone(), rp, 2),
        kernels.reversible_backward(reversible, g, rp, 2),
        y_stored,
        v_stored,
        m_stored,
        kernels.reversible_backward_(reversible, g.clone(), rp, 2, m_stored),
        kernels.reversible_backward(reversible, g, rp, 2, m_stored),
        *kernels.norm_backward_(y_MC, g_MC.clone(), mean, inv_std, weight),
    ]
    for values in (
        kernels.neuron_backward_(y, None, g.clone(), None, p),
        kernels.norm_neuron_backward_(y, g.clone(), mean, inv_std, weight, bias, p),
        kernels.norm_neuron_span_backward_(y, inv_std, mean, None, g.clone(), None, p),
        *pooled_operators(y, mean, inv_std, weight, bias, p),
        sums.stats(),
    ):
        results += [a for a in values if a is not None]
    return results


def pooled_operators(y, mean, inv_std, weight, bias, p) -> list:
    """Those with a window, as tuples of results."""
    window = kernels.Window((2, 2), (2, 2), (0, 0), False)
    shape = (*y.shape[:3], *window.pooled(y.shape[3], y.shape[4]))
    bits = y.new_zeros((math.prod(shape) + 7) // 8, dtype=torch.uint8)
    kernels.norm_neuron_pool_(y, inv_std, mean, p, bits, window, channels=y.shape[2])
    g = torch.empty_like(y)
    found = kernels.norm_neuron_pool_backward_(
        y, y.new_zeros(shape), g, [mean, inv_std, weight, bias], p, window
    )
    planes = (y.shape[0] * y.shape[1], *y.shape[2:])
    return [(bits, g), found, (kernels.average_bits(kernels.pack_bits(y), planes, window),)]


def test_meta_tensors_give_the_same_shapes() -> None:
    """On the meta device every operator returns the shapes and dtypes of the real one."""
    for real, meta in zip(every_operator("cpu"), every_operator("meta"), strict=True):
        assert meta.is_meta
        assert (meta.shape, meta.dtype) == (real.shape, real.dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    """On a GPU every operator runs, on Triton or the reference, and agrees with the CPU to rounding."""
    for real, cuda in zip(every_operator("cpu"), every_operator("cuda"), strict=True):
        assert cuda.is_cuda
        assert torch.allclose(real.double(), cuda.cpu().double(), atol=1e-4, rtol=1e-4)


def test_strided_input_takes_the_reference() -> None:
    """A tensor that is not contiguous gives the same values as its contiguous copy."""
    p = NeuronParams(decay=0.5, gain=0.5)
    x = torch.randn(4, 6, 5).transpose(1, 2)
    s, v = kernels.neuron_forward(x, None, p)
    s_expected, v_expected = kernels.neuron_forward(x.contiguous(), None, p)
    assert_same_bits(s.contiguous(), s_expected)
    assert_same_bits(v.contiguous(), v_expected)


def test_other_dtypes_take_the_reference() -> None:
    """C code reads float32 only: float64 stays float64, spikes of another dtype still pack."""
    p = NeuronParams(decay=0.5, gain=0.5)
    x = torch.randn(4, 6)
    s, v = kernels.neuron_forward(x.double(), None, p)
    assert s.dtype == v.dtype == torch.float64
    assert torch.equal(s.float(), kernels.neuron_forward(x, None, p)[0])
    for dtype in (torch.bool, torch.uint8, torch.float64):
        assert_same_bits(kernels.pack_bits(s.to(dtype)), kernels.pack_bits(s.float()))


@pytest.mark.usefixtures("native")
def test_wrong_shapes_are_refused() -> None:
    """A state or gradient of another shape is an error, not a read past the end."""
    p = NeuronParams(decay=0.5, gain=0.5)
    x = torch.zeros(4, 6)
    with pytest.raises(ValueError, match="v0 has shape"):
        kernels.neuron_forward(x, torch.zeros(5), p)
    with pytest.raises(ValueError, match="g_s has shape"):
        kernels.neuron_backward_(x, None, torch.zeros(3, 6), None, p)


def test_params_survive_the_trip_to_floats() -> None:
    """What operators are given is what the parameters say."""
    p = NeuronParams(decay=0.5, gain=0.25, v_reset=None, surrogate="triangle", leak_v=-1.0)
    assert NeuronParams.from_floats(p.as_floats()) == p
    rp = ReversibleParams(groups=5, surrogate="sigmoid", detach_reset=True)
    assert ReversibleParams.from_floats(rp.as_floats()) == rp
