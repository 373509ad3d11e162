"""Products of spikes with 8-bit weights, added up in integers: what an exact form's operators are where it pays.

The spikes that an output reads are laid beside each other, and one MatMulInteger (uint8 times int8, int32 sums) takes
the place of the convolution. Every sum is an integer below 2^24, so its float32 is the very number that a convolution
in float32 gives, in its own scale, and there is nothing to round behind it. Weights are never multiplied out.

Channels come last in between, so that what is laid beside each other is copied in whole pixels; values go in and come
out in the order in which every other operator has them.
"""

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import nn

from revedge.export.exact_layers import Snap
from revedge.export.onnx_step import StepGraph

INTEGERS = frozenset(["BatchNormalization", "Gather", "MatMulInteger", "Pad"])
# Measured, one thread of an EPYC with AVX-512 VNNI: 64 channels of 16x16 take 41 us instead of 77, 256 of 4x4 take 29
# instead of 87. With fewer channels a pixel is too short a copy, with fewer products the passes over memory are not won
# back, and the smallest files would grow by a twentieth for them.
_LEAST_CHANNELS, _LEAST_INPUTS, _LEAST_PRODUCTS = 32, 64, 1 << 22
_UINT8, _FLOAT = 2, 1  # of onnx.TensorProto
_Product = nn.Linear | nn.Conv2d


@dataclass(frozen=True, slots=True)
class _Window:
    """What outputs of a convolution read: pixels of a plane with ``pads`` (top, left, bottom, right) around it."""

    rows: tuple[int, int]  # of the padded plane, and of the outputs
    columns: tuple[int, int]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def moves(self) -> bool:
        """Whether outputs read anything but the pixel at their own place."""
        return self.kernel != (1, 1) or self.stride != (1, 1) or any(self.pads)


def in_integers(op: nn.Module, g: StepGraph, x: str) -> TypeGuard[_Product]:
    """Whether ``op``, which reads ``x``, is to be written by `product`."""
    return g.integers and x in g.spiking and pays(op, g.spiking[x])


def pays(op: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether integers are faster for an operator that reads spikes of this shape, without the batch."""
    if isinstance(op, nn.Linear):
        return op.weight.numel() >= _LEAST_PRODUCTS
    if not isinstance(op, nn.Conv2d) or op.groups != 1 or op.padding_mode != "zeros":
        return False
    if op.in_channels < _LEAST_CHANNELS or op.weight[0].numel() < _LEAST_INPUTS:
        return False
    window = _window(op, shape)
    return op.weight.numel() * window.rows[1] * window.columns[1] >= _LEAST_PRODUCTS


def product(g: StepGraph, op: _Product, snap: Snap, x: str, times: float) -> str:
    """``times`` what ``snap`` gives behind ``op`` for the spikes ``x``."""
    integers = op.weight.detach().cpu().numpy()
    levels = integers.astype(np.int8)
    assert np.array_equal(levels, integers), "weights of an exact form are levels, -127 to 127"
    assert op.bias is not None
    steps = (snap.scale * times).cpu().numpy()
    norm = [
        g.constant(f"{g.place}.scale", steps),
        g.constant(f"{g.place}.bias", op.bias.detach().cpu().numpy() * steps),
        g.constant(f"zeros/{len(steps)}", np.zeros(len(steps), np.float32)),
        g.constant(f"ones_of/{len(steps)}", np.ones(len(steps), np.float32)),
    ]
    spikes = g.op("Cast", [x], "integers", to=_UINT8)
    if isinstance(op, nn.Linear):
        weight = g.constant(f"{g.place}.weight.int8", levels.T)
        sums = g.op("Cast", [g.op("MatMulInteger", [spikes, weight])], "sums", to=_FLOAT)
        return g.op("BatchNormalization", [sums, *norm], "product", epsilon=0.0)
    window = _window(op, g.spiking[x])
    weight = g.constant(
        f"{g.place}.weight.int8", levels.transpose(2, 3, 1, 0).reshape(-1, len(levels))
    )
    read = _read(g, spikes, window, op.in_channels)
    sums = g.op("Cast", [g.op("MatMulInteger", [read, weight])], "sums", to=_FLOAT)
    turned = g.op("Transpose", [sums], "turned", perm=[0, 2, 1])
    # Times the scale, and the bias added, in one pass: less the mean 0, over the root of the variance 1 and no more.
    value = g.op("BatchNormalization", [turned, *norm], "product", epsilon=0.0)
    plane = g.sizes(0, len(levels), window.rows[1], window.columns[1])
    return g.op("Reshape", [value, plane], "value", rank=4)


def _window(op: nn.Conv2d, shape: tuple[int, ...]) -> _Window:
    left, right, top, bottom = op._reversed_padding_repeated_twice
    padded = shape[1] + top + bottom, shape[2] + left + right
    made = [
        (size - (kernel - 1) * dilation - 1) // stride + 1
        for size, kernel, dilation, stride in zip(
            padded, op.kernel_size, op.dilation, op.stride, strict=True
        )
    ]
    return _Window(
        rows=(padded[0], made[0]),
        columns=(padded[1], made[1]),
        kernel=op.kernel_size,
        stride=op.stride,
        dilation=op.dilation,
        pads=(top, left, bottom, right),
    )


def _read(g: StepGraph, spikes: str, window: _Window, channels: int) -> str:
    """``[B, outputs, products]``: all that each output reads."""
    x = g.op("Transpose", [spikes], "pixels", perm=[0, 2, 3, 1])
    if any(window.pads):
        top, left, bottom, right = window.pads
        x = g.op("Pad", [x, g.sizes(0, top, left, 0, 0, bottom, right, 0)], "padded")
    pixels = g.sizes(0, window.rows[0] * window.columns[0], channels)
    x = g.op("Reshape", [x, pixels], "pixels", rank=3)
    if not window.moves:
        return x
    beside = g.op("Gather", [x, _places(g, window)], "beside", rank=6, axis=1)
    outputs = window.rows[1] * window.columns[1]
    products = window.kernel[0] * window.kernel[1] * channels
    return g.op("Reshape", [beside, g.sizes(0, outputs, products)], "read", rank=3)


def _places(g: StepGraph, window: _Window) -> str:
    """Which pixels each output reads ``[H, W, kernel, kernel]``: a sum of rows and columns, which are less to store."""
    rows = _along(g, window, 0, window.rows[1], window.columns[0], (1, 3))
    columns = _along(g, window, 1, window.columns[1], 1, (0, 2))
    return g.once(f"{rows}+{columns}", lambda: g.op("Add", [rows, columns], "places", rank=4))


def _along(
    g: StepGraph, window: _Window, dim: int, outputs: int, pitch: int, others: tuple[int, int]
) -> str:
    """Where outputs and kernel lie along one dimension, times ``pitch``; once for all of the same geometry."""
    kernel, stride, dilation = window.kernel[dim], window.stride[dim], window.dilation[dim]
    first, taps = np.arange(outputs) * stride, np.arange(kernel) * dilation
    places = np.expand_dims(np.add.outer(first, taps) * pitch, others).astype(np.int32)
    key = "_".join(map(str, (outputs, kernel, stride, dilation, pitch)))
    return g.constant(f"{'columns' if dim else 'rows'}/{key}", places)


def shape_behind(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of what a layer without weights makes of a value of ``shape``, both without the batch."""
    return tuple(module(torch.empty(1, *shape)).shape[1:])
