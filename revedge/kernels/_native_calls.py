"""Calls of the C library: tensors to pointers. Same signatures as the reference on plain floats.

Called by the dispatcher only, with contiguous CPU tensors. Pointers of empty or absent tensors
are NULL, which the C side reads as "not given".
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from revedge.kernels._dispatch import repeats
from revedge.kernels._native import LIBRARY
from revedge.kernels.reference.norm import LANES

_Floats = Sequence[float]


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None and tensor.numel() else None)


def call(name: str, tensors: Sequence[Tensor | None], sizes: Sequence[int], p: _Floats) -> int:
    """Call ``revedge_<name>(pointers..., sizes..., floats, threads)``; return 0 or a flag."""
    floats = (ctypes.c_float * len(p))(*p)
    code: int = getattr(LIBRARY, f"revedge_{name}")(
        *map(_pointer, tensors), *map(ctypes.c_int64, sizes), floats, torch.get_num_threads()
    )
    if code < 0:
        raise MemoryError(f"kernel {name} could not allocate its scratch for sizes {list(sizes)}")
    return code


def check_shape(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, needs {tuple(shape)}")


def leak_like(v: Tensor, p: _Floats) -> Tensor:
    return torch.zeros_like(v) if p[9] or p[10] or p[11] else v.new_empty(0)


def _neurons(x: Tensor) -> int:
    return x.numel() // x.shape[0] if x.shape[0] else 0


def step_stride(x: Tensor) -> int:
    """Return how many elements the time steps of ``x`` are apart; 0 for one step that is repeated."""
    return 0 if repeats(x) else _neurons(x)


def _planes(y: Tensor, dims: int) -> tuple[int, int, int]:
    """Return (M, C, S): ``dims`` leading dimensions in one, channels, the rest in one."""
    m = 1
    for size in y.shape[:dims]:
        m *= size
    channels = y.shape[dims]
    return m, channels, y.numel() // max(1, m * channels)


def check_slab(name: str, whole: Tensor, y: Tensor, dim: int, first: int) -> int:
    """Check that the channels of ``y``, along ``dim``, fit into ``whole``; return how many it has."""
    shape = list(y.shape)
    shape[dim] = whole.shape[dim]
    check_shape(name, whole, shape)
    check_range(name, whole.shape[dim], y.shape[dim], first)
    return whole.shape[dim]


def check_range(name: str, channels: int, count: int, first: int) -> None:
    if first < 0 or first + count > channels:
        raise ValueError(f"{name} has {channels} channels, not {count} from {first} on")


def neuron_forward(
    x: Tensor, v0: Tensor | None, p: _Floats, pack: bool, state: bool
) -> tuple[Tensor, Tensor]:
    """See reference.neuron_forward."""
    check_shape("v0", v0, x.shape[1:])
    bits, s = _spikes_like(x, pack)
    v = x.new_empty(x.shape[1:] if state else 0)
    call("neuron_forward", [x, v0, s, bits, v], [x.shape[0], _neurons(x), step_stride(x)], p)
    return (bits if pack else s), v


def _spikes_like(x: Tensor, pack: bool) -> tuple[Tensor, Tensor]:
    """Return (bits, floats) to be written, of which one is empty."""
    bits = x.new_empty((x.numel() + 7) // 8 if pack else 0, dtype=torch.uint8)
    return bits, x.new_empty(0 if pack else x.shape)


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
    return _neuron_backward(x, v0, g, g, g_vT, p, state, leak)


def neuron_backward(
    x: Tensor, v0: Tensor | None, g: Tensor, g_vT: Tensor | None, p: _Floats
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.neuron_backward."""
    g_x = x.new_empty(x.shape)
    return g_x, *_neuron_backward(x, v0, g, g_x, g_vT, p, True)


def _neuron_backward(
    x: Tensor,
    v0: Tensor | None,
    g: Tensor,
    g_x: Tensor,
    g_vT: Tensor | None,
    p: _Floats,
    state: bool,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    for name, tensor in (("v0", v0), ("g_vT", g_vT), ("leak", leak)):
        check_shape(name, tensor, x.shape[1:])
    check_shape("g_s", g, x.shape)
    g_v0 = x.new_empty(x.shape[1:] if state else 0)
    g_leak = leak_like(x[0], p) if leak is None else leak.clone()
    tensors = [x, v0, g, g_x, g_vT, g_v0, g_leak]
    call("neuron_backward", tensors, [x.shape[0], _neurons(x), step_stride(x)], p)
    return g_v0, g_leak


def channel_stats(y: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.channel_stats."""
    lanes = y.new_zeros((2, y.shape[1], LANES), dtype=torch.float64)
    channel_lanes_(y, lanes)
    return lane_stats(lanes, y.numel() // max(1, y.shape[1]))


def channel_lanes_(y: Tensor, lanes: Tensor) -> None:
    """See reference.channel_lanes_."""
    check_shape("lanes", lanes, (2, y.shape[1], LANES))
    call("channel_lanes", [y, lanes], _planes(y, 1), [])


def lane_stats(lanes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See reference.lane_stats; float32."""
    channels = lanes.shape[1]
    check_shape("lanes", lanes, (2, channels, LANES))
    mean, variance = (lanes.new_empty(channels, dtype=torch.float32) for _ in range(2))
    call("lane_stats", [lanes, mean, variance], [channels, count], [])
    return mean, variance


def norm_forward(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """See reference.norm_forward."""
    z = torch.empty_like(y)
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_shape(name, tensor, y.shape[1:2])
    call("norm_forward", [y, scale, shift, z], _planes(y, 1), [])
    return z


def norm_backward_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    first: int,
    over_y: bool = False,
) -> tuple[Tensor, Tensor]:
    """See reference.norm_backward_."""
    channels = check_slab("g", g, y, 1, first)
    for name, tensor in (("mean", mean), ("inv_std", inv_std), ("weight", weight)):
        check_shape(name, tensor, y.shape[1:2])
    g_weight, g_bias = torch.empty_like(weight), torch.empty_like(weight)
    tensors = [y, g, mean, inv_std, weight, g_weight, g_bias]
    call("norm_backward", tensors, [*_planes(y, 1), channels, first, int(over_y)], [])
    return g_weight, g_bias


def gradient_lanes_(y: Tensor, g: Tensor, mean: Tensor, lanes: Tensor) -> None:
    """See reference.gradient_lanes_."""
    check_shape("g", g, y.shape)
    check_shape("mean", mean, y.shape[1:2])
    check_shape("lanes", lanes, (2, y.shape[1], LANES))
    call("gradient_lanes", [y, g, mean, lanes], _planes(y, 1), [])


def lane_gradients(lanes: Tensor, inv_std: Tensor, count: int) -> Tensor:
    """See reference.lane_gradients; float32."""
    channels = lanes.shape[1]
    check_shape("lanes", lanes, (2, channels, LANES))
    check_shape("inv_std", inv_std, (channels,))
    results = lanes.new_empty((4, channels), dtype=torch.float32)
    call("lane_gradients", [lanes, inv_std, results], [channels, count], [])
    return results


def norm_backward_apply_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    results: Tensor,
    over_y: bool,
) -> None:
    """See reference.norm_backward_apply_."""
    check_shape("g", g, y.shape)
    check_shape("results", results, (4, y.shape[1]))
    for name, tensor in (("mean", mean), ("inv_std", inv_std), ("weight", weight)):
        check_shape(name, tensor, y.shape[1:2])
    tensors = [y, g, mean, inv_std, weight, results]
    call("norm_backward_apply", tensors, [*_planes(y, 1), int(over_y)], [])


def norm_neuron_forward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    p: _Floats,
    pack: bool,
    state: bool,
) -> tuple[Tensor, Tensor]:
    """See reference.norm_neuron_forward."""
    check_shape("v0", v0, y.shape[1:])
    bits, s = _spikes_like(y, pack)
    v = y.new_empty(y.shape[1:] if state else 0)
    _norm_neuron_forward(y, scale, shift, v0, s, bits, v, p, y.shape[2], 0)
    return (bits if pack else s), v


def norm_neuron_pack_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    p: _Floats,
    bits: Tensor,
    channels: int,
    first: int,
) -> None:
    """See reference.norm_neuron_pack_."""
    check_range("bits", channels, y.shape[2], first)
    _norm_neuron_forward(y, scale, shift, None, None, bits, None, p, channels, first)


def _norm_neuron_forward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    s: Tensor | None,
    bits: Tensor | None,
    v: Tensor | None,
    p: _Floats,
    channels: int,
    first: int,
) -> None:
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_shape(name, tensor, y.shape[2:3])
    _, count, size = _planes(y, 2)
    time, batch = y.shape[:2]
    sizes = [time, batch, count, size, channels, first]
    call("norm_neuron_forward", [y, scale, shift, v0, s, bits, v], sizes, p)


def norm_neuron_backward_(
    y: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    p: _Floats,
    first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.norm_neuron_backward_."""
    channels = check_slab("g_s", g, y, 2, first)
    norm = {"mean": mean, "inv_std": inv_std, "weight": weight, "bias": bias}
    for name, tensor in norm.items():
        check_shape(name, tensor, y.shape[2:3])
    g_weight, g_bias = torch.empty_like(weight), torch.empty_like(weight)
    g_leak = leak_like(y[0], p)
    scale = weight * inv_std
    shift = bias - mean * scale
    _, count, size = _planes(y, 2)
    sizes = [*y.shape[:2], count, size, channels, first]
    tensors = [y, g, scale, shift, mean, inv_std, weight, g_weight, g_bias, g_leak]
    call("norm_neuron_backward", tensors, sizes, p)
    return g_weight, g_bias, g_leak


def norm_neuron_span_backward_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    v0: Tensor | None,
    g: Tensor,
    g_vT: Tensor | None,
    p: _Floats,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See reference.norm_neuron_span_backward_."""
    for name, tensor in (("v0", v0), ("g_vT", g_vT), ("leak", leak)):
        check_shape(name, tensor, y.shape[1:])
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_shape(name, tensor, y.shape[2:3])
    check_shape("g_s", g, y.shape)
    g_v0 = y.new_empty(y.shape[1:])
    g_leak = leak_like(y[0], p) if leak is None else leak.clone()
    _, count, size = _planes(y, 2)
    tensors = [y, scale, shift, v0, g, g_vT, g_v0, g_leak]
    call("norm_neuron_span_backward", tensors, [*y.shape[:2], count, size], p)
    return g_v0, g_leak


def grid_add_(
    x: Tensor | None,
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    bits: int,
    sign: int,
    out: Tensor,
    first: int,
) -> bool:
    """See reference.grid_add_."""
    check_shape("x", x, out.shape)
    sizes: Sequence[int] = (1, 1, y.numel(), 1, 0)
    if not scale.numel():
        check_shape("out", out, y.shape)
    else:
        channels = check_slab("out", out, y, 1, first)
        sizes = (*_planes(y, 1), channels, first)
        for name, tensor in (("scale", scale), ("shift", shift)):
            check_shape(name, tensor, y.shape[1:2])
    p = [float(2**bits), float(2.0**-bits), float(sign), float(2 ** (23 - bits))]
    return call("grid_add", [x, y, scale, shift, out], sizes, p) == 0


def pack_bits(s: Tensor) -> Tensor:
    """See reference.pack_bits."""
    bits = s.new_empty((s.numel() + 7) // 8, dtype=torch.uint8)
    call("pack_bits", [s, bits], [s.numel()], [])
    return bits


def unpack_bits(bits: Tensor, shape: list[int]) -> Tensor:
    """See reference.unpack_bits."""
    s = torch.empty(shape, dtype=torch.float32)
    call("unpack_bits", [bits, s], [s.numel()], [])
    return s
