"""What a golden file holds, and what of it counts as a flip, as rounding, and as a fault."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo import KINDS, Export, FakeFrames, chain, network, rewritten

from revedge.errors import ExportError
from revedge.export import golden
from revedge.export.golden import network_sha256
from revedge.export.golden_check import check_golden
from revedge.export.predictions import scaled
from revedge.export.probes import TrainedProbe
from revedge.export.recordings import repeat_frames
from revedge.export.rounding import step_bounds
from revedge.export.writer import export_network
from revedge.neurons import LIFNode


def test_a_network_is_named_by_all_that_it_computes() -> None:
    """Another configuration, another value, and the same values under each other's names are other networks."""
    net = network(chain(LIFNode))
    known = {network_sha256(net)}
    assert network_sha256(copy.deepcopy(net)) in known
    net.config = {**net.config, "timesteps": 99}
    known.add(network_sha256(net))
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    first, second = norms[0].weight.data, norms[0].bias.data
    with torch.no_grad():
        first[0] += 1.0
        known.add(network_sha256(net))
        swapped = second.clone(), first.clone()
        first.copy_(swapped[0])
        second.copy_(swapped[1])
    known.add(network_sha256(net))
    assert len(known) == 4


def test_bounds_are_the_largest_of_all_steps(exported: Export) -> None:
    """What rounding may do in the step in which it may do most, for logits and each state."""
    with np.load(exported.folder / "golden.npz") as archive:
        frames, bounds = archive["x"], archive["bounds"]
    trained, found = TrainedProbe(exported.net), []
    states = trained.rest(frames.shape[1])
    for frame in frames:
        seen = trained.step(frame, states)
        logits, _, after, _ = step_bounds(
            trained.net,
            torch.from_numpy(frame),
            [torch.from_numpy(v) for v in states],
            [torch.from_numpy(s) for s in seen.spikes],
        )
        found.append([float(bound.max()) for bound in (logits, *after)])
        states = seen.states
    assert np.array_equal(bounds, np.max(found, axis=0).astype(np.float32))
    assert np.any(np.array(found[-1], np.float32) < bounds)


def test_recordings_are_those_with_the_clearest_decisions(exported: Export) -> None:
    """Of the first sixteen, so that no rounding turns one."""
    frames, net = exported.frames, exported.net
    raw, _ = frames.batch(np.resize(frames.test_indices, 16))
    mean = TrainedProbe(net).answer(repeat_frames(scaled(raw, frames.scale), net.timesteps, False))
    with np.load(exported.folder / "golden.npz") as archive:
        kept = archive["logits"].mean(0)
    margins = [np.diff(np.sort(every, axis=1)[:, -2:])[:, 0] for every in (mean, kept)]
    # Batches of 16 and of 2: float32 sums in another order, and no flip that would change a mean by a hundredth.
    assert np.allclose(np.sort(margins[0])[::-1][:2], margins[1], atol=1e-3)
    assert np.ptp(margins[0]) > 0.01


@pytest.mark.parametrize(("state_bytes", "kept"), [(2 * 2 * 4 * 3 * 8 * 8 * 8, 2), (1, 1)])
def test_states_of_as_many_steps_as_there_is_room_for(
    state_bytes: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of two samples of three layers of neurons fit exactly; one step is always kept."""
    monkeypatch.setattr(golden, "_STATE_BYTES", state_bytes)
    net = network(chain(LIFNode))
    assert [spec.shape for spec in net.state_spec()] == [(8, 8, 8)] * 3
    export_network(net, FakeFrames(net), tmp_path, ["onnx"])
    assert check_golden(tmp_path / "model.onnx", tmp_path / "golden.npz").compared_steps == 2 * kept


@pytest.mark.parametrize("v_reset", [None, 0.0, -0.25])
def test_jumps_are_from_the_threshold_to_the_reset(v_reset: float | None, tmp_path: Path) -> None:
    """A soft reset takes the threshold off; a hard one goes to its value from above the threshold."""
    net = network(chain(lambda: LIFNode(v_threshold=0.75, v_reset=v_reset)))
    export_network(net, FakeFrames(net), tmp_path, ["onnx"])
    with np.load(tmp_path / "golden.npz") as archive:
        assert archive["jumps"][0] == 0.75 - (v_reset or 0.0)


def test_a_flip_is_a_spike_more_or_less(exported: Export, tmp_path: Path) -> None:
    """A state that differs by the jump of a spike is one; by less than half of it is more than rounding."""
    model = exported.folder / "model.onnx"
    before = check_golden(model, exported.folder / "golden.npz")
    with np.load(exported.folder / "golden.npz") as archive:
        state, jump = archive["state_0"], archive["jumps"][0]
    for share in (1.0, -1.0, 0.6):
        moved = state.copy()
        moved[-1, 0].reshape(-1)[0] += np.float32(share) * jump  # no step begins behind the last
        moved_golden = rewritten(exported, tmp_path / "moved.npz", state_0=moved)
        found = check_golden(model, moved_golden)
        assert found.spike_flips == before.spike_flips + 1
        assert found.flipped_steps <= before.flipped_steps + 1
    for share in (0.4, -0.01):
        moved = state.copy()
        moved[-1, :].reshape(2, -1)[:, 0] += np.float32(share) * jump
        moved_golden = rewritten(exported, tmp_path / "moved.npz", state_0=moved)
        with pytest.raises(ExportError, match="as rounding explains"):
            check_golden(model, moved_golden)


def test_a_late_reset_flips_where_its_threshold_is_crossed(tmp_path: Path) -> None:
    """Its state is the membrane that fires: moved onto the threshold it is one flip, moved further away a fault."""
    net = KINDS["late reset"]()
    frames = FakeFrames(net)
    late = Export(net, frames, tmp_path, export_network(net, frames, tmp_path, ["onnx"]))
    model = tmp_path / "model.onnx"
    before = check_golden(model, tmp_path / "golden.npz")
    assert before.compared_steps > 4 * before.flipped_steps + 4
    with np.load(tmp_path / "golden.npz") as archive:
        state, jumps = archive["state_0"], archive["jumps"]
    threshold = -jumps[0]
    assert threshold == np.nextafter(np.float32(0.9), np.float32(1))  # it fires above 0.9
    last = state[-1, 0].reshape(-1)  # of a step behind which no other begins
    silent, firing = np.flatnonzero(last < threshold), np.flatnonzero(last > threshold)
    for place, value, flips in (
        (silent[last[silent].argmax()], threshold, 1),
        (firing[last[firing].argmin()], np.nextafter(threshold, np.float32(0)), 1),
        (silent[0], np.float32(-9), None),
        (firing[0], np.float32(9), None),
    ):
        moved = state.copy()
        moved[-1, 0].reshape(-1)[place] = value
        moved_golden = rewritten(late, tmp_path / "moved.npz", state_0=moved)
        if flips is None:
            with pytest.raises(ExportError, match="as rounding explains"):
                check_golden(model, moved_golden)
        else:
            assert check_golden(model, moved_golden).spike_flips == before.spike_flips + flips
