"""Golden files: what the trained network does with a few recordings, for the check on the target (golden_check.py).

An .npz archive; every array is float32 but ``about``, which is JSON as bytes:

    about       version, network (SHA-256), numerics, steps T, batch B, state_steps S
    x           [T, B, C, H, W], or the images [B, C, H, W] of a static network; scaled, as the file takes them
    logits      [T, B, K] of every step
    state_i     [S, B, *shape] after each of the first S steps, which begin at rest
    bounds      [1 + number of states]: how far rounding may move a logit, then each state, in any of these steps
    jumps       [number of states]: how far a spike moves a state, threshold minus reset; of a neuron with a
                late reset, whose state is the membrane that fires, minus its threshold
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from revedge.export.golden_check import GOLDEN_VERSION
from revedge.export.predictions import Frames, scaled
from revedge.export.probes import Array, TrainedProbe
from revedge.export.recordings import repeat_frames
from revedge.export.rounding import step_bounds
from revedge.models import SpikingNet, spiking_units
from revedge.neurons import LateResetNode

GOLDEN_FILE = "golden.npz"
_SAMPLES = 2  # unless the batch is fixed
_CANDIDATES = 16  # recordings from which the clearest decisions are taken
_STATE_BYTES = 1 << 23  # of all states that are kept


def network_sha256(net: SpikingNet) -> str:
    """Return a hash of what a network computes: its configuration and all its values."""
    sha = hashlib.sha256(json.dumps(net.config, sort_keys=True).encode())
    for name, value in sorted(net.state_dict().items()):
        sha.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def write_golden(
    path: Path,
    trained: TrainedProbe,
    frames: Frames,
    network: str,
    *,
    batch: int | None,
    steps: int,
    exact: bool = False,
) -> None:
    """Write the golden file of a network.

    Args:
        path: of the file.
        trained: the network, or the exact form of it.
        frames: its data; recordings with a clear decision are taken from the begin of the test split.
        network: see `network_sha256`.
        batch: of the exported files; None takes two recordings.
        steps: T.
        exact: the numerics are exact: all bounds are 0.
    """
    net = trained.net
    x = _clearest(trained, frames, batch or _SAMPLES, steps)
    per_step = 4 * x.shape[1] * sum(int(np.prod(s.shape)) for s in net.state_spec())
    state_steps = max(1, min(steps, _STATE_BYTES // max(1, per_step)))
    arrays: dict[str, Any] = {"x": x[0] if net.static else x}
    states = [v.numpy() for v in net.initial_states(x.shape[1])]
    bounds = np.zeros(len(states) + 1, np.float32)
    logits, kept = [], []
    for step, frame in enumerate(x):
        seen = trained.step(frame, states)
        if step < state_steps:
            if not exact:
                bounds = np.maximum(bounds, _bounds(net, frame, states, seen.spikes))
            kept.append(seen.states)
        logits.append(seen.logits)
        states = seen.states
    for index, after in enumerate(zip(*kept, strict=True)):
        arrays[f"state_{index}"] = np.stack(after)
    arrays |= {"logits": np.stack(logits), "bounds": bounds, "jumps": _jumps(net)}
    about = {
        "version": GOLDEN_VERSION,
        "network": network,
        "numerics": "exact" if exact else "float",
        "steps": steps,
        "batch": x.shape[1],
        "state_steps": state_steps,
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _clearest(trained: TrainedProbe, frames: Frames, count: int, steps: int) -> Array:
    """Recordings ``[T, count, C, H, W]`` whose decision is furthest from another one: no rounding turns it."""
    net = trained.net
    raw, _ = frames.batch(np.resize(frames.test_indices, max(count, _CANDIDATES)))
    x = repeat_frames(scaled(raw, frames.scale), steps, net.static)
    best = np.sort(trained.answer(x[0] if net.static else x), axis=1)
    order = np.argsort(best[:, -2:][:, 0] - best[:, -1], kind="stable")  # of one class: 0
    return np.ascontiguousarray(x[:, order[:count]])


def _bounds(net: SpikingNet, frame: Array, states: list[Array], spikes: list[Array]) -> Array:
    logits, _, after, _ = step_bounds(
        net,
        torch.from_numpy(frame),
        [torch.from_numpy(v) for v in states],
        [torch.from_numpy(s) for s in spikes],
    )
    return np.array([float(bound.max()) for bound in (logits, *after)], np.float32)


def _jumps(net: SpikingNet) -> Array:
    jumps = []
    for _, unit in spiking_units(net):
        assert unit.neuron is not None
        neuron = unit.neuron
        late = isinstance(neuron, LateResetNode)  # its state does not jump: it is what fires
        jumps.append(-neuron.v_threshold if late else neuron.v_threshold - (neuron.v_reset or 0.0))
    return np.array(jumps, np.float32)
