"""The table of `revedge export --cost`: operations, firing rates and bytes of every layer. `inspect` shows it again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revedge.cli.output import table
from revedge.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from revedge.data import FrameCache
    from revedge.models import SpikingNet

COST_FILE = "model.cost.json"  # beside the exported files
SAMPLES = 64  # of the test split
_BATCH = 16


def cost_of(
    net: "SpikingNet", frames: "FrameCache", bytes_per_weight: int
) -> tuple[str, dict[str, Any]]:
    """Return the table and the same numbers as JSON-able values, measured on the first `SAMPLES` test samples."""
    from revedge.models.energy import measure_cost

    values = measure_cost(net, _batches(frames), bytes_per_weight=bytes_per_weight).to_dict()
    return cost_table(values), values


def read_cost(path: Path, network: str) -> tuple[str, dict[str, Any]] | None:
    """Return the table and the values of a cost file if it is there and of this ``network``; no torch."""
    try:
        values = json.loads(path.read_text())
        return (cost_table(values), values) if values["network"] == network else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def cost_table(values: dict[str, Any]) -> str:
    """Return the lines for people."""
    rows = [
        (
            layer["path"],
            layer["reads"],
            f"{100 * layer['rate']:.1f} %",
            f"{layer['dense']:.4g}",
            f"{layer['accumulates']:.4g}",
            f"{layer['macs']:.4g}",
            format_bytes(layer["weight_bytes"]),
        )
        for layer in values["layers"]
    ]
    header = ("layer", "reads", "not 0", "dense", "additions", "multiply-adds", "weights")
    neurons = [
        (
            neuron["path"],
            str(neuron["count"]),
            f"{100 * neuron['rate']:.1f} %",
            format_bytes(neuron["state_bytes"]),
        )
        for neuron in values["neurons"]
    ]
    return "\n".join(
        [
            f"cost of one sample, {values['timesteps']} steps, mean of {values['samples']} test samples:",
            table(header, rows),
            table(("neurons", "count", "fire", "states"), neurons),
            f"{values['accumulates']:.4g} additions and {values['multiply_accumulates']:.4g} multiply-adds where "
            f"zeros are skipped, {values['dense_operations']:.4g} multiply-adds where they are not, and "
            f"{values['neuron_updates']:.4g} neuron updates; weights {format_bytes(values['weight_bytes'])}, states "
            f"{format_bytes(values['state_bytes'])} per stream",
            f"at 45 nm (Horowitz 2014: 0.9 pJ, 4.6 pJ) {values['estimate_45nm_uj']:.3g} uJ where zeros are skipped, "
            f"{values['dense_45nm_uj']:.3g} uJ where not; arithmetic only, without memory traffic and neurons",
        ]
    )


def _batches(frames: "FrameCache") -> Iterator["Tensor"]:
    import numpy as np
    import torch

    chosen = frames.test_indices[:SAMPLES]
    for begin in range(0, len(chosen), _BATCH):
        raw, _ = frames.batch(chosen[begin : begin + _BATCH])
        yield torch.from_numpy(raw.astype(np.float32) * np.float32(frames.scale))
