"""A NIR graph that was read, written again: the same nodes, parameters and edges, with the weights it has by now."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from revedge.export.nir_import import NirNet, NirNeuron


def graph_of(net: NirNet) -> Any:
    """Return the ``nir.NIRGraph`` that ``net`` was read from, values in float32.

    What was trained since is in it: weights, biases, and what neurons hold as ``tau``, ``r``, ``v_leak``,
    ``v_threshold`` and ``v_reset``.
    """
    import nir

    nodes = {name: _node(net.layer(name), net.kinds[name], net.shapes[name]) for name in net.order}
    edges = [(source, name) for name in net.order for source in net.sources[name]]
    return nir.NIRGraph(nodes=nodes, edges=edges)


def write_again(net: NirNet, path: Path) -> None:
    """Write `graph_of` to an HDF5 file, completely or not at all."""
    import nir

    temporary = path.with_name(f".{path.name}.part")
    try:
        nir.write(str(temporary), graph_of(net))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _node(layer: nn.Module, kind: str, shape: Any) -> Any:
    import nir

    make: Any = getattr(nir, kind)
    if kind in ("Input", "Output"):
        return make({kind.lower(): shape})
    if isinstance(layer, NirNeuron):
        names = ("r", "v_threshold", "v_reset", *(("tau", "v_leak") if layer.leaky else ()))
        return make(**{name: _array(layer.get_buffer(name)) for name in names})
    if isinstance(layer, nn.Flatten):
        end = layer.end_dim
        last = end if end < 0 else end - 1
        return make({"input": shape}, start_dim=layer.start_dim - 1, end_dim=last)
    if isinstance(layer, nn.AvgPool2d):
        sizes = (layer.kernel_size, layer.stride, layer.padding)
        return make(*(np.array(size) for size in sizes))
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    values = {"weight": _array(layer.weight)}
    if layer.bias is not None:
        values["bias"] = _array(layer.bias)
    if isinstance(layer, nn.Linear):
        return make(**values)
    options = {
        key: value[0] if kind == "Conv1d" else value
        for key, value in (
            ("stride", layer.stride),
            ("padding", layer.padding),
            ("dilation", layer.dilation),
        )
    }
    return make(input_shape=shape, groups=layer.groups, **options, **values)


def _array(value: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = value.detach().cpu().numpy().copy()
    return array
