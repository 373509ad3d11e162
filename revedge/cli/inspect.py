"""`revedge inspect`: what an exported file says about itself, and what it costs. Without torch.

Operators and the bytes of its constants only where onnx is installed; operations only where `export --cost` was asked
for, because how often neurons fire cannot be known from a file.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from revedge.cli.cost import COST_FILE, read_cost
from revedge.cli.output import emit, table
from revedge.units import format_bytes

_NO_COST = "operations at measured firing rates are written by: revedge export RUN --cost"
_EPILOG = """example:
  revedge inspect out/model.onnx"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("model", metavar="MODEL", type=Path, help="an ONNX file of revedge export")


def run(args: argparse.Namespace) -> int:
    """Read and report."""
    from revedge.export.runner import StreamRunner

    told = StreamRunner(args.model).manifest
    sizes = [4 * _count(state.shape) for state in told.states]
    counts, constant_bytes = _content(args.model)
    cost = read_cost(args.model.with_name(COST_FILE), told.network)
    head = {
        "graph": told.graph,
        "target": told.target,
        "opset": told.opset,
        "batch": told.batch or "free",
        "time steps": told.steps or (1 if told.graph == "step" else "free"),
        "trained with": f"T = {told.timesteps}, data {told.data or 'unknown'}",
        "input": f"x, {told.to_dict()['input']['layout']} with C,H,W = {_text(told.in_shape)}, "
        f"float32, 8-bit frames times {told.input_scale:g}",
        "classes": f"{told.num_classes}: {', '.join(told.class_names)}",
        "weights": told.weights
        + (f", {format_bytes(constant_bytes)} with all constants" if constant_bytes else ""),
        "numerics": told.numerics + _certified(told.certificate),
        "file": format_bytes(args.model.stat().st_size),
        "states": f"{len(told.states)}, {format_bytes(sum(sizes))} per stream",
        "network": told.network,
        "versions": ", ".join(f"{name} {value}" for name, value in told.versions.items()),
        "operators": ", ".join(f"{count} {name}" for name, count in counts.items())
        or "not read; they need the package onnx",
    }
    rows = [
        (state.name, _text(state.shape), f"{state.init:g}", format_bytes(size), state.path)
        for state, size in zip(told.states, sizes, strict=True)
    ]
    width = max(map(len, head))
    lines = [f"{key.ljust(width)}  {value}" for key, value in head.items()]
    lines += ["", table(("state", "shape", "rest", "size", "neuron"), rows)] if rows else []
    lines += ["", cost[0] if cost else f"no {COST_FILE} of this network beside it; {_NO_COST}"]
    emit(
        args,
        "\n".join(lines),
        {
            "metadata": told.to_dict(),
            "file_bytes": args.model.stat().st_size,
            "state_bytes": sum(sizes),
            "operators": counts,
            "constant_bytes": constant_bytes,
            "cost": cost[1] if cost else None,
        },
    )
    return 0


def _content(path: Path) -> tuple[dict[str, int], int | None]:
    """Operators by number, and bytes of all constants; nothing of both without the package onnx."""
    try:
        import onnx
    except ModuleNotFoundError:
        return {}, None
    from revedge.export.onnx_operators import constant_bytes, operators

    model = onnx.load(str(path), load_external_data=False)
    return operators(model), constant_bytes(model)


def _certified(certificate: Mapping[str, Any]) -> str:
    if not {"largest", "limit", "places"} <= set(certificate):
        return ""
    return (
        f": the largest sum of {len(certificate['places'])} kinds is {certificate['largest']}, float32 is exact below "
        f"{certificate['limit']}"
    )


def _text(shape: Any) -> str:
    return "x".join(map(str, shape))


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
