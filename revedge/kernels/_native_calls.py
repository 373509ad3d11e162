"""Calls of the C library: tensors to pointers. Same signatures as the reference on plain floats.

Called by the dispatcher only, with contiguous CPU tensors. Pointers of empty or absent tensors
are NULL, which the C side reads as "not given".
"""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from revedge.kernels._dispatch import repeats
from revedge.kernels._native import LIBRARY
from revedge.kernels.reference.norm import LANES
from revedge.kernels.reference.rounding import to_float32

_Floats = Sequence[float]


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None and tensor.numel() else None)


def _call(name: str, tensors: Sequence[Tensor | None], sizes: Sequence[int], p: _Floats) -> int:
    """Call ``revedge_<name>(pointers..., sizes..., floats, threads)``; return 0 or a flag."""
    floats = (ctypes.c_float * len(p))(*p)
    code: int = getattr(LIBRARY, f"revedge_{name}")(
        *map(_pointer, tensors), *map(ctypes.c_int64, sizes), floats, torch.get_num_threads()
    )
    if code < 0:
        raise MemoryError(f"kernel {name} could not allocate its scratch for sizes {list(sizes)}")
    return code


def _check_shape(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, needs {tuple(shape)}")


def _leak_like(v: Tensor, p: _Floats) -> Tensor:
    return torch.empty_like(v) if p[9] or p[10] or p[11] else v.new_empty(0)


def _neurons(x: Tensor) -> int:
    return x.numel() // x.shape[0] if x.shape[0] else 0


def _step_stride(x: Tensor) -> int:
    """Return how many elements the time steps of ``x`` are apart; 0 for one step that is repeated."""
    return 0 if repeats(x) else _neurons(x)


def _planes(y: Tensor, dims: int) -> tuple[int, int, int]:
    """Return (M, C, S): ``dims`` leading dimensions in one, channels, the rest in one."""
    m = 1
    for size in y.shape[:dims]:
        m *= size
    channels = y.shape[dims]
    return m, channels, y.numel() // max(1, m * channels)


def _check_slab(name: str, whole: Tensor, y: Tensor, dim: int, first: int) -> int:
    """Check that the channels of ``y``, along ``dim``, fit into ``whole``; return how many it has."""
    shape = list(y.shape)
    shape[dim] = whole.shape[dim]
    _check_shape(name, whole, shape)
    _check_range(name, whole.shape[dim], y.shape[dim], first)
    return whole.shape[dim]


def _check_range(name: str, channels: int, count: int, first: int) -> None:
    if first < 0 or first + count > channels:
        raise ValueError(f"{name} has {channels} channels, not {count} from {first} on")


def neuron_forward(
    x: Tensor, v0: Tensor | None, p: _Floats, pack: bool, state: bool
) -> tuple[Tensor, Tensor]:
    """See reference.neuron_forward."""
    _check_shape("v0", v0, x.shape[1:])
    bits, s = _spikes_like(x, pack)
    v = x.new_empty(x.shape[1:] if state else 0)
    _call("neuron_forward", [x, v0, s, bits, v], [x.shape[0], _neurons(x), _step_stride(x)], p)
    return (bits if pack else s), v


def _spikes_like(x: Tensor, pack: bool) -> tuple[Tensor, Tensor]:
    """Return (bits, floats) to be written, of which one is empty."""
    bits = x.new_empty((x.numel() + 7) // 8 if pack else 0, dtype=torch.uint8)
    return bits, x.new_empty(0 if pack else x.shape)


def neuron_backward_(
    x: Tensor, v0: Tensor | None, g: Tensor, g_vT: Tensor | None, p: _Floats, state: bool
) -> tuple[Tensor, Tensor]:
    """See reference.neuron_backward_."""
    return _neuron_backward(x, v0, g, g, g_vT, p, state)


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
) -> tuple[Tensor, Tensor]:
    for name, tensor in (("v0", v0), ("g_vT", g_vT)):
        _check_shape(name, tensor, x.shape[1:])
    _check_shape("g_s", g, x.shape)
    g_v0 = x.new_empty(x.shape[1:] if state else 0)
    g_leak = _leak_like(x[0], p)
    tensors = [x, v0, g, g_x, g_vT, g_v0, g_leak]
    _call("neuron_backward", tensors, [x.shape[0], _neurons(x), _step_stride(x)], p)
    return g_v0, g_leak


def channel_stats(y: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.channel_stats."""
    lanes = y.new_zeros((2, y.shape[1], LANES), dtype=torch.float64)
    channel_lanes_(y, lanes)
    return lane_stats(lanes, y.numel() // max(1, y.shape[1]))


def channel_lanes_(y: Tensor, lanes: Tensor) -> None:
    """See reference.channel_lanes_."""
    _check_shape("lanes", lanes, (2, y.shape[1], LANES))
    _call("channel_lanes", [y, lanes], _planes(y, 1), [])


def lane_stats(lanes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See reference.lane_stats; float32."""
    channels = lanes.shape[1]
    _check_shape("lanes", lanes, (2, channels, LANES))
    mean, variance = (lanes.new_empty(channels, dtype=torch.float32) for _ in range(2))
    _call("lane_stats", [lanes, mean, variance], [channels, count], [])
    return mean, variance


def norm_forward(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """See reference.norm_forward."""
    z = torch.empty_like(y)
    for name, tensor in (("scale", scale), ("shift", shift)):
        _check_shape(name, tensor, y.shape[1:2])
    _call("norm_forward", [y, scale, shift, z], _planes(y, 1), [])
    return z


def norm_backward_(
    y: Tensor, g: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """See reference.norm_backward_."""
    channels = _check_slab("g", g, y, 1, first)
    for name, tensor in (("mean", mean), ("inv_std", inv_std), ("weight", weight)):
        _check_shape(name, tensor, y.shape[1:2])
    g_weight, g_bias = torch.empty_like(weight), torch.empty_like(weight)
    tensors = [y, g, mean, inv_std, weight, g_weight, g_bias]
    _call("norm_backward", tensors, [*_planes(y, 1), channels, first], [])
    return g_weight, g_bias


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
    _check_shape("v0", v0, y.shape[1:])
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
    _check_range("bits", channels, y.shape[2], first)
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
        _check_shape(name, tensor, y.shape[2:3])
    _, count, size = _planes(y, 2)
    time, batch = y.shape[:2]
    sizes = [time, batch, count, size, channels, first]
    _call("norm_neuron_forward", [y, scale, shift, v0, s, bits, v], sizes, p)


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
    channels = _check_slab("g_s", g, y, 2, first)
    norm = {"mean": mean, "inv_std": inv_std, "weight": weight, "bias": bias}
    for name, tensor in norm.items():
        _check_shape(name, tensor, y.shape[2:3])
    g_weight, g_bias = torch.empty_like(weight), torch.empty_like(weight)
    g_leak = _leak_like(y[0], p)
    scale = weight * inv_std
    shift = bias - mean * scale
    _, count, size = _planes(y, 2)
    sizes = [*y.shape[:2], count, size, channels, first]
    tensors = [y, g, scale, shift, mean, inv_std, weight, g_weight, g_bias, g_leak]
    _call("norm_neuron_backward", tensors, sizes, p)
    return g_weight, g_bias, g_leak


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
    _check_shape("x", x, out.shape)
    sizes: Sequence[int] = (1, 1, y.numel(), 1, 0)
    if not scale.numel():
        _check_shape("out", out, y.shape)
    else:
        channels = _check_slab("out", out, y, 1, first)
        sizes = (*_planes(y, 1), channels, first)
        for name, tensor in (("scale", scale), ("shift", shift)):
            _check_shape(name, tensor, y.shape[1:2])
    p = [float(2**bits), float(2.0**-bits), float(sign), float(2 ** (23 - bits))]
    return _call("grid_add", [x, y, scale, shift, out], sizes, p) == 0


def pack_bits(s: Tensor) -> Tensor:
    """See reference.pack_bits."""
    bits = s.new_empty((s.numel() + 7) // 8, dtype=torch.uint8)
    _call("pack_bits", [s, bits], [s.numel()], [])
    return bits


def unpack_bits(bits: Tensor, shape: list[int]) -> Tensor:
    """See reference.unpack_bits."""
    s = torch.empty(shape, dtype=torch.float32)
    _call("unpack_bits", [bits, s], [s.numel()], [])
    return s


def _reversible_sizes(x: Tensor, p: _Floats, dim: int) -> list[int]:
    """Return [T, P, groups, L] (see reference/reversible.py)."""
    before = 1
    for size in x.shape[1 : dim % x.dim()]:
        before *= size
    groups = int(p[0])
    return [x.shape[0], before, groups, x.numel() // max(1, x.shape[0] * before * groups)]


def _reversible_floats(p: _Floats) -> list[float]:
    """Return the constants as the reference rounds them."""
    a = 1.0 / p[1]
    return [to_float32(a), to_float32(1.0 - a), *p[2:]]


def reversible_forward(x: Tensor, p: _Floats, dim: int) -> tuple[Tensor, Tensor]:
    """See reference.reversible_forward."""
    y, v = torch.empty_like(x), x.new_empty(x.shape[1:])
    sizes = _reversible_sizes(x, p, dim)
    _call("reversible_forward", [x, y, v, None], sizes, _reversible_floats(p))
    return y, v


def reversible_forward_stored(x: Tensor, p: _Floats, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.reversible_forward_stored."""
    y, v, m = torch.empty_like(x), x.new_empty(x.shape[1:]), torch.empty_like(x)
    sizes = _reversible_sizes(x, p, dim)
    _call("reversible_forward", [x, y, v, m], sizes, _reversible_floats(p))
    return y, v, m


def reversible_reconstruct(y: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_reconstruct."""
    x = torch.empty_like(y)
    sizes = _reversible_sizes(y, p, dim)
    _call("reversible_reconstruct", [y, x], sizes, _reversible_floats(p))
    return x


def reversible_backward_(y: Tensor, g: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_backward_."""
    x = torch.empty_like(y)
    _reversible_backward(y, None, g, g, x, p, dim)
    return x


def reversible_backward(y: Tensor, g: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_backward."""
    g_x = torch.empty_like(g)
    _reversible_backward(y, None, g, g_x, None, p, dim)
    return g_x


def reversible_stored_backward_(y: Tensor, m: Tensor, g: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_stored_backward_."""
    x = torch.empty_like(y)
    _reversible_backward(y, m, g, g, x, p, dim)
    return x


def reversible_stored_backward(y: Tensor, m: Tensor, g: Tensor, p: _Floats, dim: int) -> Tensor:
    """See reference.reversible_stored_backward."""
    g_x = torch.empty_like(g)
    _reversible_backward(y, m, g, g_x, None, p, dim)
    return g_x


def _reversible_backward(
    y: Tensor,
    m: Tensor | None,
    g: Tensor,
    g_x: Tensor,
    x: Tensor | None,
    p: _Floats,
    dim: int,
) -> None:
    _check_shape("g_y", g, y.shape)
    _check_shape("m", m, y.shape)
    sizes = _reversible_sizes(y, p, dim)
    _call("reversible_backward", [y, m, g, g_x, x], sizes, _reversible_floats(p))


def pooled_shape(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Return the shape of ``max_pool(x)``."""
    sizes = zip(x.shape[-2:], kernel, stride, padding, strict=True)
    return [*x.shape[:-2], *((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)]


def max_pool(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """See reference.max_pool."""
    y = x.new_empty(pooled_shape(x, kernel, stride, padding))
    _call("max_pool", [x, y], _pool_sizes(x, y, kernel, stride, padding), [])
    return y


def max_pool_backward(
    x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """See reference.max_pool_backward."""
    _check_shape("g", g, pooled_shape(x, kernel, stride, padding))
    g_x = torch.empty_like(x)
    _call("max_pool_backward", [x, g, g_x], _pool_sizes(x, g, kernel, stride, padding), [])
    return g_x


def _pool_sizes(x: Tensor, y: Tensor, *windows: list[int]) -> list[int]:
    window = _checked([size for pair in windows for size in pair])
    height, width = x.shape[-2:]
    planes = x.numel() // max(1, height * width)
    return [planes, height, width, *y.shape[-2:], *window]


def norm_neuron_pool_(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    p: _Floats,
    bits: Tensor,
    channels: int,
    first: int,
    window: list[int],
) -> None:
    """See reference.norm_neuron_pool_."""
    for name, tensor in (("scale", scale), ("shift", shift)):
        _check_shape(name, tensor, y.shape[2:3])
    _check_range("bits", channels, y.shape[2], first)
    pooled = pooled_shape(y, window[:2], window[2:4], window[4:])
    numel = math.prod([*y.shape[:2], channels, *pooled[-2:]])
    _check_shape("bits", bits, [(numel + 7) // 8])
    sizes = [*y.shape, channels, first, *pooled[-2:], *_checked(window)]
    _call("norm_neuron_pool", [y, scale, shift, bits], sizes, p)


def norm_neuron_pool_backward_(
    y: Tensor,
    g_pooled: Tensor,
    g: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    p: _Floats,
    first: int,
    window: list[int],
    average: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.norm_neuron_pool_backward_."""
    channels = _check_slab("g", g, y, 2, first)
    pooled = pooled_shape(y, window[:2], window[2:4], window[4:])
    _check_shape("g_pooled", g_pooled, [*y.shape[:2], channels, *pooled[-2:]])
    norm = {"mean": mean, "inv_std": inv_std, "weight": weight, "bias": bias}
    for name, tensor in norm.items():
        _check_shape(name, tensor, y.shape[2:3])
    g_weight, g_bias = torch.empty_like(weight), torch.empty_like(weight)
    g_leak = _leak_like(y[0], p)
    scale = weight * inv_std
    shift = bias - mean * scale
    sizes = [*y.shape, channels, first, *pooled[-2:], *_checked(window), int(average)]
    tensors = [y, g_pooled, g, scale, shift, mean, inv_std, weight, g_weight, g_bias, g_leak]
    _call("norm_neuron_pool_backward", tensors, sizes, p)
    return g_weight, g_bias, g_leak


def average_bits(bits: Tensor, shape: list[int], window: list[int]) -> Tensor:
    """See reference.average_bits."""
    numel = math.prod(shape)
    if bits.numel() * 8 < numel:
        raise ValueError(f"{bits.numel()} bytes hold no {numel} bits of {shape}")
    parts = window[:2], window[2:4], window[4:]
    mean = torch.empty(pooled_shape(torch.empty(shape, device="meta"), *parts))
    planes = numel // max(1, shape[-2] * shape[-1])
    sizes = [planes, *shape[-2:], *mean.shape[-2:], *_checked(window)]
    _call("average_bits", [bits, mean], sizes, [])
    return mean


def _checked(window: list[int]) -> list[int]:
    for k, p in zip(window[:2], window[4:], strict=True):
        if k < 1 or p < 0 or 2 * p > k:
            raise ValueError(f"a window of {k} with padding {p} is not one; use at most {k // 2}")
    return window
